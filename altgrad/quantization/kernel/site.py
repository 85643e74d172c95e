"""A rounding site: one rounding of one of a layer's tensors, with its format, amax history and counts.

`SiteSet` is all of a layer's sites in one phase of its recipe's schedule.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from altgrad.config.cast import GEMM_SITES, GEMMS, Cast, GemmSite
from altgrad.config.operands import Operand, Rounded, roundings
from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.counting.counters import COUNTERS, SUMS
from altgrad.quantization.kernel.counting.slots import Slots
from altgrad.quantization.kernel.scaled_rounding import mode_of, spec_for

OPERAND_TENSORS: tuple[GemmSite, ...] = ("activation", "weight", "gradient")
Key = TypeVar("Key", bound=Hashable)
Reads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
_SALT_APART = 1 << 20  # between the random numbers of two roundings of one tensor


class Site:
    """The state of one rounding.  `set_format` replaces the format in place, without recompilation.

    A site is not a module and its tensors are not buffers, so that nothing that loads, copies, casts, moves or averages
    a model's tensors can change the format: the `spec` that the kernel reads is derived from `format`.  The state that
    a checkpoint needs (formats, histories) is in `QuantizedModel.state_dict`.
    """

    spec: Tensor
    history: Tensor  # float32: delayed: (amax_history,), newest first; static: the scale, (1,); else empty
    counts: Tensor | None  # sums over all passes since the counts were last set aside or taken
    _aside: tuple[Tensor, ...]  # sums of earlier micro-batches, one each

    def __init__(self, rounded: Rounded, salt: int, device: torch.device) -> None:
        """`rounded`: the cast, its dimension, and the operands it serves; `salt`: see the package."""
        cast = rounded.cast
        self.rounded, self.mode = rounded, mode_of(cast, rounded.dimension)
        self._salt = salt
        self._format = cast.number_format
        self.exact_in_bfloat16 = cast.bfloat16_obstacle() is None  # whether its values survive the cast
        self.spec = self._spec(device)
        kept = {"delayed": [0.0] * cast.amax_history, "static": [cast.static_scale]}.get(cast.scaling, [])
        self.history = torch.tensor(kept, dtype=torch.float32, device=device)
        self.counts, self._aside = None, ()
        self.slots = Slots(self)

    @property
    def name(self) -> str:
        """`weight`, or `dgrad.weight` if the GEMMs that read the tensor round it differently."""
        return self.rounded.name

    @property
    def delayed(self) -> bool:
        """Whether the scale comes from the amax history of earlier steps."""
        return self.mode.scaling == "delayed"

    @property
    def changes_nothing(self) -> bool:
        """Whether every value stays as it is, since the format has all of float32, and no amax is remembered."""
        fmt, mode = self._format, self.mode
        return fmt.mantissa_bits == 23 and fmt.overflow == "inf" and not mode.hadamard and mode.scaling != "delayed"

    def _spec(self, device: torch.device) -> Tensor:
        return spec_for(self.rounded.cast, self._format, self._salt, device)

    @property
    def format(self) -> NumberFormat:
        """The format to which the site rounds now."""
        return self._format

    def share(self, scales: bool = True) -> None:
        """From now on the site's tensors are this rank's rows of larger ones; scales: with the scales of these."""
        self.mode = self.mode._replace(shared=True, own_scales=not scales)

    def note_filled(self, filled: bool) -> None:
        """Whether the history holds an amax, so that a compiler need not have one of the tensor before it rounds.

        It is part of the graph: changing it means another one.
        """
        if self.mode.filled != filled:
            self.mode = self.mode._replace(filled=filled)

    def set_format(self, fmt: NumberFormat) -> None:
        """Round to another format from now on; the cast's block, scale and rounding stay."""
        self._format = fmt = self.rounded.cast.scaled_as_asked(fmt)
        self.exact_in_bfloat16 = self.rounded.cast.bfloat16_obstacle(fmt) is None
        self.spec.copy_(self._spec(self.spec.device))

    def follow(self, device: torch.device) -> None:
        """Move to `device`, where the layer's weight now is; counts are dropped."""
        kept = self.history
        self.spec = self._spec(device)
        self.history = torch.zeros_like(kept, device=device) if kept.is_meta else kept.to(device)
        self.counts, self._aside = None, ()
        self.slots = Slots(self)

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy or a pickle: all but the slots and counts, which belong to a running step."""
        return {name: value for name, value in vars(self).items() if name not in ("slots", "counts", "_aside")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.counts, self._aside = None, ()
        self.slots = Slots(self)

    def add_counts(self, counts: Tensor) -> None:
        """Add the counts of one more use: the first SUMS are added, of amax and scale the larger is kept."""
        self.counts = together(self.counts, counts)

    def set_aside(self) -> None:
        """Call before a further micro-batch: `counts` is None again, so that its guard holds (no recompilation)."""
        self._aside, self.counts = self.of_micro_batches(), None

    def of_micro_batches(self) -> tuple[Tensor, ...]:
        """Counts of each micro-batch that used the site since they were last taken, (len(COUNTERS),) each."""
        return self._aside if self.counts is None else (*self._aside, self.counts)

    def take_counts(self) -> Tensor | None:
        """All counts since they were last taken, (len(COUNTERS),); None if the site was not used.  Resets them."""
        found = self.of_micro_batches()
        self.forget_counts()
        return functools.reduce(together, found) if found else None

    def forget_counts(self) -> None:
        """Begin to count anew."""
        self.counts, self._aside, self.slots.used = None, (), 0


def together(before: Tensor | None, counts: Tensor) -> Tensor:
    """Counts of two roundings: the first SUMS are added, of amax and scale the larger is kept."""
    if before is None:
        return counts
    return torch.cat([counts[:SUMS] + before[:SUMS], torch.maximum(counts[SUMS:], before[SUMS:])])


def counted(sites: Mapping[Key, Site]) -> dict[Key, Tensor]:
    """The counts of each site that was used, (len(COUNTERS),), as `Site.take_counts` returns them, without a reset.

    The counts of all sites are put together at once: three kernels for 8 micro-batches of a model of 150 sites, where
    site by site they would be more than 4000.
    """
    found = {key: counts for key, site in sites.items() if (counts := site.of_micro_batches())}
    passes = {len(counts) for counts in found.values()}
    if passes <= {1}:
        return {key: counts for key, (counts,) in found.items()}
    if len(passes) > 1 or len({counts.device for of_site in found.values() for counts in of_site}) > 1:
        return {key: functools.reduce(together, counts) for key, counts in found.items()}
    several = torch.stack([counts for of_site in found.values() for counts in of_site]).view(
        len(found), -1, len(COUNTERS)
    )
    sums, largest = several[:, :, :SUMS].sum(1), several[:, :, SUMS:].amax(1)
    return dict(zip(found, torch.cat([sums, largest], dim=1), strict=True))


class SiteSet(NamedTuple):
    """The sites of a layer in one phase: by name, by tensor, by what the GEMMs read, and whether any draws numbers."""

    by_name: dict[str, Site]
    by_tensor: dict[GemmSite, list[Site]]
    reads: Reads
    stochastic: bool

    @classmethod
    def of(cls, casts: Mapping[Operand, Cast], salt: int, device: torch.device) -> SiteSet:
        """The sites for the casts of a layer's six operands; `salt`: the layer's number."""
        by_name: dict[str, Site] = {}
        by_tensor: dict[GemmSite, list[Site]] = {}
        for place, (tensor, found) in enumerate(roundings(casts).items()):
            for again, rounded in enumerate(found):
                own_salt = salt * len(GEMM_SITES) + place + again * _SALT_APART
                by_name[rounded.name] = Site(rounded, own_salt, device)
            by_tensor[tensor] = [by_name[rounded.name] for rounded in found]
        reads = _reads([by_tensor[tensor] for tensor in OPERAND_TENSORS])
        stochastic = any(cast.rounding == "stochastic" or cast.redraws for cast in casts.values())
        return cls(by_name, by_tensor, reads, stochastic)

    def continue_from(self, earlier: SiteSet) -> None:
        """Take over what the sites of the phase before know of their operands, when training enters this phase.

        Amaxes of delayed scaling, as many as this history holds, if both rotate alike; a history without predecessor
        is empty.  And the format to which an intervention has changed the operand, if both casts name the same one.
        """
        before = {operand: site for site in earlier.by_name.values() for operand in site.rounded.operands}
        for site in self.by_name.values():
            old = before[site.rounded.operands[0]]
            if site.delayed:
                site.history.zero_()
                if old.delayed and old.rounded.cast.hadamard == site.rounded.cast.hadamard:
                    common = min(len(site.history), len(old.history))
                    site.history[:common].copy_(old.history[:common])
            same = old.rounded.cast.number_format == site.rounded.cast.number_format
            fmt = old.format if same else site.rounded.cast.number_format
            if fmt != site.format:
                site.set_format(fmt)


def _reads(sites: Sequence[Sequence[Site]]) -> Reads:
    """For each GEMM, in the order of `GEMMS`, the positions of the roundings of its two operands.

    sites: the roundings of x, W and dy.  If dW reads a second rounding of x, its entry is (0, 1): the first rounding of
    dy and the second of x.
    """
    places = {
        operand: place for found in sites for place, site in enumerate(found) for operand in site.rounded.operands
    }
    fprop, dgrad, wgrad = (
        tuple(places[Operand(name, tensor)] for tensor in operands) for name, operands in GEMMS.items()
    )
    return fprop, dgrad, wgrad  # type: ignore[return-value]
