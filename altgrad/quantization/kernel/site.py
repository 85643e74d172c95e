"""A rounding site: one rounding of one of a layer's tensors, with its format, its history and what it counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altgrad.config.operands import Rounded
from altgrad.formats import FORMATS, NumberFormat
from altgrad.quantization.kernel.counters import SUMS
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import mode_of
from altgrad.quantization.kernel.slots import Slots


class Site:
    """The state of one rounding.  `set_format` replaces the format in place: no graph is compiled anew.

    No module, and its tensors are no buffers: what the kernel reads (`spec`) is derived from `format`, and nothing that
    loads, copies, casts, moves or averages a model's tensors can change it.  What belongs to a checkpoint (formats,
    histories) is in `QuantizedModel.state_dict`.
    """

    spec: Tensor
    history: Tensor  # (amax_history,) float32, newest first; empty where the scale is not delayed
    counts: Tensor | None  # of the forward and backward passes since they were set aside or taken
    _aside: Tensor | None

    def __init__(self, rounded: Rounded, salt: int, device: torch.device) -> None:
        """`rounded`: the cast, along which dimension, and whose operands it serves."""
        cast = rounded.cast
        self.rounded, self.mode = rounded, mode_of(cast, rounded.dimension)
        self._salt = salt
        self._format = cast.number_format
        self.exact_in_bfloat16 = cast.bfloat16_obstacle() is None  # whether what it rounds to survives the cast
        self.spec = self._spec(device)
        kept = {"delayed": [0.0] * cast.amax_history, "static": [cast.static_scale]}.get(cast.scaling, [])
        self.history = torch.tensor(kept, dtype=torch.float32, device=device)
        self.counts = self._aside = None
        self.slots = Slots(self)

    @property
    def name(self) -> str:
        """`weight`, or where its GEMMs see a tensor rounded differently `dgrad.weight`."""
        return self.rounded.name

    @property
    def delayed(self) -> bool:
        return self.mode.scaling == "delayed"

    def _spec(self, device: torch.device) -> Tensor:
        rule = self.rounded.cast.scale_rule
        spec = spec_of(self._format, self._salt, device, "ceil" if rule == "real" else rule)
        return torch.cat([spec, spec_of(FORMATS["E4M3"], 0, device)]) if self.mode.two_level else spec

    @property
    def format(self) -> NumberFormat:
        return self._format

    def share(self) -> None:
        """From now on the site's tensors are this rank's rows of larger ones."""
        self.mode = self.mode._replace(shared=True)

    def set_format(self, fmt: NumberFormat) -> None:
        """Round to another format from now on; the cast's block, scale and rounding stay."""
        self._format = fmt
        self.exact_in_bfloat16 = self.rounded.cast.bfloat16_obstacle(fmt) is None
        self.spec.copy_(self._spec(self.spec.device))

    def follow(self, device: torch.device) -> None:
        """Be on the device where the layer's weight now is."""
        kept = self.history
        self.spec = self._spec(device)
        self.history = torch.zeros_like(kept, device=device) if kept.is_meta else kept.to(device)
        self.counts = self._aside = None
        self.slots = Slots(self)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a file: without what belongs to a backward pass."""
        return {name: value for name, value in vars(self).items() if name not in ("slots", "counts", "_aside")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.counts = self._aside = None
        self.slots = Slots(self)

    def add_counts(self, counts: Tensor) -> None:
        """Counts of one more use: sums add up, of the others the largest stays."""
        self.counts = _together(self.counts, counts)

    def set_aside(self) -> None:
        """Before another micro-batch: its graph finds no counts, as that of the first did, and is the same."""
        self._aside, self.counts = self.counted(), None

    def counted(self) -> Tensor | None:
        """Counts since they were last taken, (len(COUNTERS),); None where the site was not used."""
        return self._aside if self.counts is None else _together(self._aside, self.counts)

    def take_counts(self) -> Tensor | None:
        """What is `counted`, which is forgotten."""
        counts = self.counted()
        self.counts, self._aside, self.slots.used = None, None, 0
        return counts

    def remember(self, amax: Tensor) -> None:
        """Put a step's amax at the front of the history that delayed scaling reads; the oldest falls out."""
        if self.history.numel():
            self.history.copy_(torch.cat([amax.reshape(1), self.history[:-1]]))


def _together(before: Tensor | None, counts: Tensor) -> Tensor:
    if before is None:
        return counts
    return torch.cat([counts[:SUMS] + before[:SUMS], torch.maximum(counts[SUMS:], before[SUMS:])])
