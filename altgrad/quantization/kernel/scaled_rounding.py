"""One rounding, whole: scale, rotate, round, unscale and count.

It is one function without side effects, so that eager code and a compiled graph run the same arithmetic and a compiler
can fuse it into one pass.  What is fixed about it when a graph is compiled is its `Mode`; everything else is data: the
format, the rule of its scale and the salt of its random numbers (`spec`), amaxes of earlier steps (`history`) and the
words from which random numbers are drawn (`key`).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from altgrad.config.cast import Cast, Dimension
from altgrad.quantization.kernel.counters import COUNTERS, count
from altgrad.quantization.kernel.random import materialised, uniform
from altgrad.quantization.kernel.ranks import largest_over_ranks
from altgrad.quantization.kernel.rotation import rotated
from altgrad.quantization.kernel.round import SPEC_LENGTH, FormatTensors, Rounding, round_magnitude, saturate
from altgrad.quantization.kernel.scale import scale_for, settled_amax, two_level_scale
from altgrad.quantization.kernel.tiles import finite_amax, in_groups, join, split, tile_of

# Hash of this folder's sources: a graph cached on disk knows the operator below by its arguments alone.
_SOURCE = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
SCALINGS = ("none", "dynamic", "delayed", "static")


class Mode(NamedTuple):
    """What is fixed when a graph is compiled; everything else about a site is data."""

    rounding: Rounding
    scaling: str
    granularity: str  # what shares a scale: tensor, row, or AxB (see `tiles`)
    power_of_two: bool
    amax_factor: float
    last: bool = True  # rows and tiles run along the last dimension; else along the first
    two_level: bool = False  # scales of tiles are rounded to E4M3, under one FP32 scale of the tensor
    hadamard: int = 0  # size of the rotation along the same dimension; 0: none
    redrawn: bool = False  # the rotation's signs are new ones in every step
    at_rest: bool = False  # the write-back of a stored weight, whose scale must not double for a trifle
    shared: bool = False  # a rank's rows of a larger tensor: scaled and drawn for as one with the other ranks' rows
    use: int = 0  # how often the layer has drawn random numbers with this key before

    def check(self) -> None:
        """Raise ValueError for a name that would silently mean another one."""
        for field, value, known in (
            ("rounding", self.rounding, get_args(Rounding)),
            ("scaling", self.scaling, SCALINGS),
        ):
            if value not in known:
                raise ValueError(f"{field}={value!r}; known: {', '.join(known)}")
        tile_of(self.granularity)

    @property
    def in_blocks(self) -> bool:
        """Whether tiles are pieces of rows along the last dimension, which are cut by a view alone."""
        tile = tile_of(self.granularity)
        return tile is not None and tile[0] == 1 and self.last

    @property
    def shares_amax(self) -> bool:
        """Whether the ranks must agree on an amax; rows of the last dimension and tiles lie on one rank."""
        whole = self.granularity == "tensor" or (self.granularity == "row" and not self.last)
        return self.shared and whole and self.scaling not in ("none", "static")


@functools.cache
def mode_of(cast: Cast, dimension: Dimension | None) -> Mode:
    """What is fixed about a cast when a graph is compiled; its format and the rule of its scale are data."""
    return Mode(
        cast.rounding,
        cast.scaling,
        cast.block,
        cast.scale_format == "E8M0",
        cast.amax_factor,
        last=dimension != "first",
        two_level=cast.scale_format == "E4M3",
        hadamard=cast.hadamard,
        redrawn=cast.redraws,
    )


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
    """(Q(x) / scale, scale, counts): what `round_site` computes before it multiplies by the scale; no tiles.

    scale: 0-d for "tensor", (..., 1) for "row".
    """
    assert tile_of(mode.granularity) is None and mode.last and not mode.hadamard
    codes, (scale, _), counts = _code(x, spec, history, key, mode, in_bits=torch.compiler.is_compiling())
    return codes, scale, torch.stack(counts)


def rounded_with_counts(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, in_bits: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """As `round_site`, with each count by itself (0-d).

    x: not empty.  `in_bits`: in the way that compiles to the fewest instructions.
    """
    if mode.hadamard:
        x = rotated(x, mode.hadamard, mode.last, key if mode.redrawn else None)
    codes, (scale, _), counts = _code(x, spec, history, key, mode, in_bits)
    return join(_unscaled(codes, scale, mode), x, mode.granularity, mode.last), counts


def _unscaled(codes: Tensor, scale: Tensor, mode: Mode) -> Tensor:
    return codes if mode.scaling == "none" else codes * scale


def _code(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, in_bits: bool, counting: bool = True
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """Q(x) / scale, (scale, inverse scale) and the counts, in the shape of `split` or in that of `in_groups`."""
    if in_bits and x.is_contiguous():
        x = materialised(x)  # read twice, by the amax and by the rounding: a GELU before it would be computed twice
    fmt = FormatTensors.view(spec)
    values = split(x, mode.granularity, mode.last)
    if in_bits and mode.in_blocks and not mode.two_level and x.device.type == "cpu":
        values, fmt = in_groups(values, fmt)
    amax = finite_amax(values, mode.granularity, mode.last, fmt.infinity)
    if mode.shares_amax:
        amax = largest_over_ranks(amax)
    if mode.at_rest and mode.scaling not in ("none", "static"):
        amax = settled_amax(amax, fmt)
        values = torch.clamp(values, -amax, amax)
    noise = _noise(x, values, fmt, key, mode) if mode.rounding == "stochastic" else None
    scale, inverse = _scale(amax, fmt, spec, history, mode)
    scaled = values if mode.scaling == "none" else values * inverse
    magnitude = round_magnitude(scaled, fmt, mode.rounding, noise)
    rounded = saturate(magnitude, scaled, fmt)
    counts = count(values, scaled, magnitude, fmt, amax, scale, in_bits) if counting else []
    return rounded, (scale, inverse), counts


def _noise(x: Tensor, values: Tensor, fmt: FormatTensors, key: Tensor, mode: Mode) -> Tensor:
    """Random numbers for `values`, which are x in the shape of `split`.

    At rest with a salt of its own: the operand rounding of the same weight must not reuse the random numbers.
    """
    salt = ~fmt.salt if mode.at_rest else fmt.salt
    if tile_of(mode.granularity) is None or mode.in_blocks:
        return uniform(key, values, salt, mode.shared, mode.use)
    return split(uniform(key, x, salt, mode.shared, mode.use), mode.granularity, mode.last)


def rounded_and_scale(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q(x), scale, inverse scale), each in the shape of x; nothing is counted, and nothing is rotated."""
    if x.numel() == 0:
        return x, torch.ones_like(x), torch.ones_like(x)
    codes, (scale, inverse), _ = _code(x, spec, history, key, mode, in_bits=False, counting=False)
    parts = (_unscaled(codes, scale, mode), scale.expand(codes.shape), inverse.expand(codes.shape))
    values, scale, inverse = (join(part, x, mode.granularity, mode.last) for part in parts)
    return values, scale, inverse


def _scale(amax: Tensor, fmt: FormatTensors, spec: Tensor, history: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    if mode.scaling == "none":
        one = torch.ones_like(amax)
        return one, one
    if mode.scaling == "static":
        scale = history[0].expand(amax.shape)
        return scale, 1.0 / scale
    if mode.scaling == "delayed":
        remembered = history.max()
        amax = torch.where(remembered > 0, remembered, amax)
    amax = amax * mode.amax_factor if mode.amax_factor != 1 else amax
    if mode.two_level:
        scale_format = FormatTensors.view(spec[SPEC_LENGTH:])
        tensor_amax = largest_over_ranks(amax.amax()) if mode.shared else amax.amax()
        scale, inverse = two_level_scale(amax, tensor_amax, fmt, scale_format)
    else:
        scale, inverse = scale_for(amax, fmt, mode.power_of_two)
    return materialised(scale), materialised(inverse)


# While Dynamo traces a model, a site is one operator: traces stay short, and a graph without an autograd function's
# body can be cached on disk.  The compiler behind it gets to see the arithmetic itself.
torch.library.define(
    "altgrad::round_site",
    "(Tensor x, Tensor spec, Tensor history, Tensor key, str rounding, str scaling, str granularity, "
    "bool power_of_two, float amax_factor, bool last, bool two_level, int hadamard, bool redrawn, bool at_rest, "
    "bool shared, int use, str source) -> (Tensor, Tensor)",
)


@torch.library.impl("altgrad::round_site", "CompositeImplicitAutograd")
def _operator(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *mode, _ = rest
    values, counts = rounded_with_counts(x, spec, history, key, Mode(*mode), in_bits=True)
    return values, torch.stack(counts)
