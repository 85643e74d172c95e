"""A rounding site: one operand of a layer's GEMMs, with its format, its scale and what its rounding did.

Scaling, rounding, unscaling and counting are one function without side effects, so that eager code and a compiled
graph run the same arithmetic and a compiler can fuse it into one pass.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from altgrad.config.recipe import GemmSite, Recipe
from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.counters import COUNTERS, SUMS, count
from altgrad.quantization.kernel.random import materialised, uniform
from altgrad.quantization.kernel.ranks import largest_over_ranks
from altgrad.quantization.kernel.round import FormatTensors, Rounding, round_magnitude, saturate, spec_of
from altgrad.quantization.kernel.scale import (
    Granularity,
    finite_amax,
    from_blocks,
    in_groups,
    scale_for,
    settled_amax,
    to_blocks,
)
from altgrad.quantization.kernel.slots import Slots

# Hash of this folder's sources: a graph cached on disk knows the operator below by its arguments alone.
_SOURCE = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
SCALINGS = ("none", "dynamic", "delayed")


class Mode(NamedTuple):
    """What is fixed when a graph is compiled; everything else about a site is data."""

    rounding: Rounding
    scaling: str
    granularity: Granularity
    power_of_two: bool
    amax_factor: float
    at_rest: bool = False  # the write-back of a stored weight, whose scale must not double for a trifle
    shared: bool = False  # a rank's rows of a larger tensor: scaled and drawn for as one with the other ranks' rows
    use: int = 0  # how often the layer has drawn random numbers with this key before

    def check(self) -> None:
        """Raise ValueError for a name that would silently mean another one."""
        for field, value, known in (
            ("rounding", self.rounding, get_args(Rounding)),
            ("scaling", self.scaling, SCALINGS),
            ("granularity", self.granularity, get_args(Granularity)),
        ):
            if value not in known:
                raise ValueError(f"{field}={value!r}; known: {', '.join(known)}")

    @property
    def shares_amax(self) -> bool:
        """Whether the ranks must agree on an amax; rows and blocks lie on one rank."""
        return self.shared and self.granularity == "tensor" and self.scaling != "none"


class Site:
    """The state of one rounding site.  `set_format` replaces the format in place: no graph is compiled anew.

    No module, and its tensors are no buffers: what the kernel reads (`spec`) is derived from `format`, and nothing that
    loads, copies, casts, moves or averages a model's tensors can change it.  What belongs to a checkpoint (formats,
    histories) is in `QuantizedModel.state_dict`.
    """

    spec: Tensor
    history: Tensor  # (amax_history,) float32, newest first; empty where the scale is not delayed
    counts: Tensor | None  # of the forward and backward passes since they were set aside or taken
    _aside: Tensor | None

    def __init__(self, fmt: NumberFormat, recipe: Recipe, name: GemmSite, salt: int, device: torch.device) -> None:
        weight = name == "weight"
        delayed = recipe.scaling == "delayed" and not weight  # a weight's own amax is known when it is rounded
        self.mode = Mode(
            recipe.rounding,
            "dynamic" if recipe.scaling == "delayed" and not delayed else recipe.scaling,
            recipe.scale_granularity,
            recipe.scale_power_of_two,
            1.0 if weight else recipe.amax_factor,
        )
        self._recipe = recipe
        self._salt = salt
        self._format = fmt
        self.exact_in_bfloat16 = recipe.bfloat16_obstacle(fmt) is None
        self.spec = spec_of(fmt, salt, device)
        self.history = torch.zeros(recipe.amax_history if delayed else 0, dtype=torch.float32, device=device)
        self.counts = self._aside = None
        self.slots = Slots(self)

    @property
    def format(self) -> NumberFormat:
        return self._format

    def share(self) -> None:
        """From now on the site's tensors are this rank's rows of larger ones."""
        self.mode = self.mode._replace(shared=True)

    def set_format(self, fmt: NumberFormat) -> None:
        """Raises ValueError for a format that the products the recipe asks for cannot take."""
        obstacle = self._recipe.bfloat16_obstacle(fmt)
        if self._recipe.gemm_dtype == "bfloat16" and obstacle is not None:
            raise ValueError(f"gemm_dtype='bfloat16': {obstacle}; a run that changes to {fmt} needs gemm_dtype='auto'")
        if self._recipe.native_fp8 and fmt != self.format:
            raise ValueError(f"native_fp8=True: a site cannot change from {self.format} to {fmt}; use native_fp8=False")
        self.exact_in_bfloat16 = obstacle is None
        self._format = fmt
        self.spec.copy_(spec_of(fmt, self._salt, self.spec.device))

    def follow(self, device: torch.device) -> None:
        """Be on the device where the layer's weight now is."""
        kept = self.history
        self.spec = spec_of(self._format, self._salt, device)
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


def round_site(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """(Q(x), counts of `COUNTERS`) for a float32 tensor of any shape; a compiler leaves out counts that nobody reads.

    Delayed scaling takes the largest amax of `history`, and the current one while the history is empty (all zero).

    Raises ValueError for an unknown rounding, scaling or granularity.
    """
    if not torch.compiler.is_compiling():
        mode.check()
    if x.numel() == 0:  # a batch without tokens, as an expert of a mixture may get
        if mode.shares_amax:  # other ranks, whose experts got some, wait for this one
            largest_over_ranks(torch.zeros((), dtype=torch.float32, device=x.device))
        return x, torch.zeros(len(COUNTERS), dtype=torch.float32, device=x.device)
    if torch.compiler.is_dynamo_compiling():
        return torch.ops.altgrad.round_site(x, spec, history, key, *mode, _SOURCE)
    values, counts = rounded_with_counts(x, spec, history, key, mode)
    return values, torch.stack(counts)


def code_site(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
    """(Q(x) / scale, scale, counts): what `round_site` computes before it multiplies by the scale; no blocks.

    scale: 0-d for "tensor", (..., 1) for "row".
    """
    assert mode.granularity != "block"
    codes, (scale, _), counts = _code(x, spec, history, key, mode, in_bits=torch.compiler.is_compiling())
    return codes, scale, torch.stack(counts)


def rounded_with_counts(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, in_bits: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """As `round_site`, with each count by itself (0-d).

    x: not empty.  `in_bits`: in the way that compiles to the fewest instructions.
    """
    rounded, (scale, _), counts = _code(x, spec, history, key, mode, in_bits)
    if mode.scaling != "none":
        rounded = rounded * scale
    return (from_blocks(rounded.view(to_blocks(x).shape), x) if mode.granularity == "block" else rounded), counts


def _code(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, in_bits: bool, counting: bool = True
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """Q(x) / scale, (scale, inverse scale) and the counts; for blocks in their shape, or in that of `in_groups`."""
    if in_bits and x.is_contiguous():
        x = materialised(x)  # read twice, by the amax and by the rounding: a GELU before it would be computed twice
    blocks = to_blocks(x) if mode.granularity == "block" else x
    fmt = FormatTensors.view(spec)
    if in_bits and mode.granularity == "block" and x.device.type == "cpu":
        blocks, fmt = in_groups(blocks, fmt)
    amax = finite_amax(blocks, mode.granularity, fmt.infinity)
    if mode.shares_amax:
        amax = largest_over_ranks(amax)
    if mode.at_rest and mode.scaling != "none":
        amax = settled_amax(amax, fmt)
        blocks = torch.clamp(blocks, -amax, amax)
    # at rest a salt of its own: the operand rounding of the same weight must not reuse the random numbers
    salt = ~spec[-1] if mode.at_rest else spec[-1]
    noise = uniform(key, blocks, salt, mode.shared, mode.use) if mode.rounding == "stochastic" else None
    scale, inverse = _scale(amax, fmt, history, mode)
    scaled = blocks if mode.scaling == "none" else blocks * inverse
    magnitude = round_magnitude(scaled, fmt, mode.rounding, noise)
    rounded = saturate(magnitude, scaled, fmt)
    counts = count(blocks, scaled, magnitude, fmt, amax, scale, in_bits) if counting else []
    return rounded, (scale, inverse), counts


def rounded_and_scale(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q(x), scale, inverse scale), each in the shape of x; nothing is counted."""
    if x.numel() == 0:
        return x, torch.ones_like(x), torch.ones_like(x)
    codes, scales, _ = _code(x, spec, history, key, mode, in_bits=False, counting=False)
    scale, inverse = (part.expand(codes.shape) for part in scales)
    values = codes if mode.scaling == "none" else codes * scale
    if mode.granularity == "block":
        return from_blocks(values, x), from_blocks(scale, x), from_blocks(inverse, x)
    return values, scale, inverse


def _scale(amax: Tensor, fmt: FormatTensors, history: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    if mode.scaling == "none":
        one = torch.ones_like(amax)
        return one, one
    if mode.scaling == "delayed":
        remembered = history.max()
        amax = torch.where(remembered > 0, remembered, amax)
    amax = amax * mode.amax_factor if mode.amax_factor != 1 else amax
    scale, inverse = scale_for(amax, fmt, mode.power_of_two)
    return materialised(scale), materialised(inverse)


# While Dynamo traces a model, a site is one operator: traces stay short, and a graph without an autograd function's
# body can be cached on disk.  The compiler behind it gets to see the arithmetic itself.
torch.library.define(
    "altgrad::round_site",
    "(Tensor x, Tensor spec, Tensor history, Tensor key, str rounding, str scaling, str granularity, "
    "bool power_of_two, float amax_factor, bool at_rest, bool shared, int use, str source) -> (Tensor, Tensor)",
)


@torch.library.impl("altgrad::round_site", "CompositeImplicitAutograd")
def _operator(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *mode, _ = rest
    values, counts = rounded_with_counts(x, spec, history, key, Mode(*mode), in_bits=True)
    return values, torch.stack(counts)
