"""A complete rounding: rotate, scale, round, unscale and count.

It is one function without side effects, so that eager code and a compiled graph run the same arithmetic and a compiler
can fuse it into one pass.  Its `Mode` is fixed when a graph is compiled.  Everything else is data: the format, the
scale rule and the salt of the random numbers (`spec`), amaxes of earlier steps (`history`) and the words from which
random numbers are drawn (`key`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from altgrad.config.cast import Cast, Dimension
from altgrad.formats import FORMATS, NumberFormat
from altgrad.quantization.kernel.counting.counters import COUNTERS, count, of_parts
from altgrad.quantization.kernel.random import materialised, uniform
from altgrad.quantization.kernel.ranks import largest_over_ranks
from altgrad.quantization.kernel.rotation import rotated
from altgrad.quantization.kernel.round import SPEC_LENGTH, FormatTensors, Rounding, round_magnitude, saturate, spec_of
from altgrad.quantization.kernel.scale import scale_for, settled_amax, two_level_scale
from altgrad.quantization.kernel.tiles import (
    deinterleaved,
    finite_amax,
    in_groups,
    interleaved,
    join,
    pieces,
    rows_at_once,
    split,
    tile_of,
)

# Hash of this folder's sources, an argument of the operator below: torch's graph cache on disk identifies an operator
# by its arguments alone, and would serve graphs of an older kernel.
_FILES = sorted(Path(__file__).parent.rglob("*.py"))
_SOURCE = hashlib.sha256(b"".join(file.read_bytes() for file in _FILES)).hexdigest()
SCALINGS = ("none", "dynamic", "delayed", "static")


class Mode(NamedTuple):
    """The structure of a rounding, which is fixed when a graph is compiled: another mode means another graph."""

    rounding: Rounding
    scaling: str
    granularity: str  # which values share a scale: tensor, row, or AxB (see `tiles`)
    power_of_two: bool
    amax_factor: str  # as Python writes it: a float would be an input of a graph with dynamic shapes
    last: bool = True  # rows and tiles run along the last dimension; else along the first
    two_level: bool = False  # scales of tiles are rounded to E4M3, under one FP32 scale of the tensor
    hadamard: int = 0  # size of the rotation along the same dimension; 0: none
    redrawn: bool = False  # the rotation's signs are drawn anew in every step
    at_rest: bool = False  # the write-back of a stored weight, whose scale follows `settled_amax`
    shared: bool = False  # a rank's rows of a larger tensor, whose scale and random numbers it shares
    group: str = ""  # name of the process group of these ranks; "": all ranks
    columns: bool = False  # a rank has columns of the tensor instead of rows
    own_scales: bool = False  # a rank chooses the scales of its part, and shares random numbers only
    use: int = 0  # number of the layer's earlier draws with this key
    by_columns: bool = False  # the amax of a tensor is taken by columns, whose sums a GPU computes in the same pass
    filled: bool = False  # of delayed scaling: the history holds an amax, so that no scale depends on x

    def check(self) -> None:
        """Raise ValueError for an unknown name, which the kernel would silently treat as another one."""
        for field, value, known in (
            ("rounding", self.rounding, get_args(Rounding)),
            ("scaling", self.scaling, SCALINGS),
        ):
            if value not in known:
                raise ValueError(f"{field}={value!r}; known: {', '.join(known)}")
        tile_of(self.granularity)

    @property
    def in_blocks(self) -> bool:
        """Whether tiles are 1 x B along the last dimension, so that `split` needs a view and no copy."""
        tile = tile_of(self.granularity)
        return tile is not None and tile[0] == 1 and self.last

    @property
    def scale_leaves_the_sum(self) -> bool:
        """Whether a real scale is the same for a whole tensor or row, so that a GEMM can apply it to its sums."""
        alike = self.two_level or tile_of(self.granularity) is None
        return self.scaling != "none" and not self.power_of_two and alike

    @property
    def counts_amax_alone(self) -> bool:
        """Whether the amax of the tensor is for the counts alone, so that a GPU may reduce it with these."""
        known = self.scaling == "none" or (self.scaling == "delayed" and self.filled)
        return known and self.granularity == "tensor" and not (self.shares_amax or self.at_rest)

    @property
    def shares_amax(self) -> bool:
        """Whether a scale covers values of several ranks, which must agree on its amax.

        It does for one scale per tensor and for rows that run across the ranks; other rows and tiles lie on one rank.
        """
        whole = self.granularity == "tensor" or (self.granularity == "row" and self.last == self.columns)
        return self.shared and not self.own_scales and whole and self.scaling not in ("none", "static")


class Scales(NamedTuple):
    """By what codes are multiplied, in the shape of the amax."""

    scale: Tensor
    inverse: Tensor
    of_sum: Tensor  # the scale, or of a two-level one that of the tensor (0-d)
    of_tile: Tensor | None = None  # of a two-level scale the part that a sum of many tiles cannot leave out


@functools.cache
def mode_of(cast: Cast, dimension: Dimension | None) -> Mode:
    """The mode of a cast whose rows and tiles run along `dimension` (None: the last)."""
    return Mode(
        cast.rounding,
        cast.scaling,
        cast.block,
        cast.scales_are_powers_of_two,
        repr(cast.amax_factor),
        last=dimension != "first",
        two_level=cast.scale_format == "E4M3",
        hadamard=cast.hadamard,
        redrawn=cast.redraws,
    )


def spec_for(cast: Cast, fmt: NumberFormat, salt: int, device: torch.device) -> Tensor:
    """The `spec` of a cast; `fmt` is the cast's own format unless it was changed during a run."""
    rule = "ceil" if cast.scale_rule == "real" else cast.scale_rule
    spec = spec_of(fmt, salt, device, rule)
    return torch.cat([spec, spec_of(FORMATS["E4M3"], 0, device)]) if cast.scale_format == "E4M3" else spec


def round_site(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """(Q(x) in float32, counts of `COUNTERS`) for a tensor of any shape and float dtype.

    A compiler removes counts that nobody reads.
    Delayed scaling uses the largest amax of `history`; as long as the history holds only zeros, the amax of x (with
    `filled` it must hold another number).
    Raises ValueError for an unknown rounding, scaling or granularity.
    """
    if not torch.compiler.is_compiling():
        mode.check()
    if x.numel() == 0:  # a batch without tokens: an expert of a mixture may get none
        if mode.shares_amax:  # the collective needs every rank, also one without tokens
            shape = () if mode.granularity == "tensor" else (x.shape[0], 1) if mode.last else (1, x.shape[-1])
            largest_over_ranks(torch.zeros(shape, dtype=torch.float32, device=x.device), mode.group)
        return x, torch.zeros(len(COUNTERS), dtype=torch.float32, device=x.device)
    if torch.compiler.is_dynamo_compiling():
        return torch.ops.altgrad.round_site(x, spec, history, key, *mode, _SOURCE)
    values, counts = rounded_with_counts(x, spec, history, key, mode)
    return values, torch.stack(counts)


def code_site(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
    """(Q(x) / scale, scale, counts): `round_site` before its multiplication by the scale.

    scale: 0-d for "tensor"; for "row" (..., 1), or (1, columns) for rows along the first dimension.  Of two-level
    scales it is that of the tensor: the codes are multiplied by those of their tiles.
    """
    assert mode.two_level or tile_of(mode.granularity) is None
    if x.numel() == 0:
        values, counts = round_site(x, spec, history, key, mode)
        return values, torch.ones((), dtype=torch.float32, device=x.device), counts
    if torch.compiler.is_dynamo_compiling():
        return torch.ops.altgrad.code_site(x, spec, history, key, *mode, _SOURCE)
    return _codes(x, spec, history, key, mode, in_bits=torch.compiler.is_compiling())


def _codes(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, in_bits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if mode.hadamard:
        x = rotated(x.float(), mode.hadamard, mode.last, key if mode.redrawn else None)
    codes, scales, counts = _code(x, spec, history, key, mode, in_bits)
    if scales.of_tile is not None:
        codes = [part * scales.of_tile for part in codes]
    return join(deinterleaved(codes), x, mode.granularity, mode.last), scales.of_sum, torch.stack(counts)


def rounded_with_counts(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, in_bits: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """As `round_site`, with each count as a 0-d tensor.

    x: not empty.  `in_bits`: compute on the bits of float32, which compiles to fewer instructions.
    """
    if mode.hadamard:
        x = rotated(x.float(), mode.hadamard, mode.last, key if mode.redrawn else None)
    codes, scales, counts = _code(x, spec, history, key, mode, in_bits)
    return join(_unscaled(codes, scales.scale, mode), x, mode.granularity, mode.last), counts


def _unscaled(codes: list[Tensor], scale: Tensor, mode: Mode) -> Tensor:
    """The parts multiplied by their scales and put together: multiplied later, Inductor would store them twice."""
    return deinterleaved(codes if mode.scaling == "none" else [part * scale for part in codes])


def _code(
    x: Tensor,
    spec: Tensor,
    history: Tensor,
    key: Tensor,
    mode: Mode,
    in_bits: bool,
    counting: bool = True,
    salts: Tensor | None = None,
) -> tuple[list[Tensor], Scales, list[Tensor]]:
    """(parts of Q(x) / scale, scales, counts), shaped as `split` or `in_groups` returns them.

    It is one part, but for columns in compiled code on a CPU (see `rows_at_once`).
    salts: x is a stack of tensors that share nothing, with these salts (see `rounded_each`).
    """
    if in_bits and x.is_contiguous() and x.device.type == "cpu":
        x = materialised(x)  # amax and rounding both read it; else Inductor computes a GELU before it twice
    x = x.float()  # a GPU computes a GELU faster than it writes and reads this copy
    fmt = FormatTensors.view(spec)
    in_pieces = mode.rounding != "stochastic" and x.device.type == "cpu"  # random numbers are drawn by tiles
    values = split(x, mode.granularity, mode.last, in_pieces)
    of_tile = pieces(x, mode.granularity, mode.last, in_pieces)
    if in_bits and mode.in_blocks and not mode.two_level and of_tile == (1, 1) and x.device.type == "cpu":
        values, fmt = in_groups(values, fmt)
    compared, together = 1, 1
    if in_bits and x.device.type == "cpu":
        compared, together = rows_at_once(values, mode.granularity, mode.last)
    of_rows = in_bits and mode.counts_amax_alone
    amax = finite_amax(values, mode.granularity, mode.last, fmt.infinity, compared, mode.by_columns, of_tile, of_rows)
    if mode.shares_amax:
        amax = largest_over_ranks(amax, mode.group)
    counted = amax
    if mode.at_rest and mode.scaling not in ("none", "static"):
        amax = settled_amax(amax, fmt)
        overflows = fmt.beyond_bits.view(torch.float32) == torch.inf  # then an infinite weight stays one
        values = torch.where(overflows & (values.abs() == torch.inf), values, torch.clamp(values, -amax, amax))
    if mode.rounding != "stochastic":
        noise = None
    elif salts is None:
        noise = _noise(x, values, fmt, key, mode)
    else:
        noise = uniform(key, values, salts, each=True)
    scales = _scales(amax, fmt, spec, history, mode, each=salts is not None)
    applied = None if mode.scaling == "none" else scales.scale
    codes, counts = [], []
    for part, of_part in zip(interleaved(values, together), _parts(noise, together), strict=True):
        scaled = part if mode.scaling == "none" else part * scales.inverse
        magnitude = round_magnitude(scaled, fmt, mode.rounding, of_part)
        codes.append(saturate(magnitude, scaled, fmt))
        if counting:
            counts.append(count(part, scaled, magnitude, fmt, counted, applied, in_bits))
    return codes, scales, of_parts(counts)


def _parts(noise: Tensor | None, rows: int) -> Sequence[Tensor | None]:
    return [None] * rows if noise is None else interleaved(noise, rows)


def _noise(x: Tensor, values: Tensor, fmt: FormatTensors, key: Tensor, mode: Mode) -> Tensor:
    """Random numbers for `values`, which are x in the shape of `split`.

    The write-back (`at_rest`) has a separate salt: it must not reuse the numbers of the operand rounding of its weight.
    """
    salt = ~fmt.salt if mode.at_rest else fmt.salt
    if tile_of(mode.granularity) is None or mode.in_blocks:
        return uniform(key, values, salt, mode.shared, mode.use)
    return split(uniform(key, x, salt, mode.shared, mode.use), mode.granularity, mode.last)


def rounded_and_scale(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q(x), scale, inverse scale), each in the shape of x, without counts and without the rotation of the mode."""
    if x.numel() == 0:
        return x, torch.ones_like(x), torch.ones_like(x)
    codes, scales, _ = _code(x, spec, history, key, mode, in_bits=False, counting=False)
    rounded = _unscaled(codes, scales.scale, mode)
    parts = (rounded, scales.scale.expand(rounded.shape), scales.inverse.expand(rounded.shape))
    values, scale, inverse = (join(part, x, mode.granularity, mode.last) for part in parts)
    return values, scale, inverse


def rounded_each(x: Tensor, spec: Tensor, salts: Tensor, key: Tensor, mode: Mode) -> Tensor:
    """Q of each row of x, (tensors, values), as if the row were a tensor of its own; in the shape of x.

    It is one pass for many tensors of one size.  salts: int32, (tensors,).  mode: rows or 1xB tiles along the last
    dimension, whose amax is that of the row itself; no rotation.
    """
    assert mode.granularity == "row" or mode.in_blocks
    history = x.new_zeros(0)
    codes, scales, _ = _code(x, spec, history, key, mode, in_bits=False, counting=False, salts=salts)
    return join(_unscaled(codes, scales.scale, mode), x, mode.granularity, mode.last)


def _scales(amax: Tensor, fmt: FormatTensors, spec: Tensor, history: Tensor, mode: Mode, each: bool = False) -> Scales:
    if mode.scaling == "none":
        one = torch.ones_like(amax)
        return Scales(one, one, one)
    if mode.scaling == "static":
        scale = history[0].expand(amax.shape)
        return Scales(scale, 1.0 / scale, scale)
    if mode.scaling == "delayed":
        remembered = history.max()
        amax = remembered if mode.filled else torch.where(remembered > 0, remembered, amax)
    factor = float(mode.amax_factor)
    amax = amax * factor if factor != 1 else amax
    if mode.two_level:
        scale_format = FormatTensors.view(spec[SPEC_LENGTH:])
        tensor_amax = amax.amax(dim=tuple(range(1, amax.ndim)), keepdim=True) if each else amax.amax()
        if mode.shared and not mode.own_scales:
            tensor_amax = largest_over_ranks(tensor_amax, mode.group)
        whole, of_tile, inverse = two_level_scale(amax, tensor_amax, fmt, scale_format)
        return Scales(materialised(whole * of_tile), materialised(inverse), whole, of_tile)
    scale, inverse = (materialised(part) for part in scale_for(amax, fmt, mode.power_of_two))
    return Scales(scale, inverse, scale)


# While Dynamo traces a model, a rounding is one operator: traces stay short, and a graph without the body of an
# autograd function can be cached on disk.  AOTAutograd decomposes the operator, so that Inductor fuses its arithmetic.
_ARGUMENTS = (
    "(Tensor x, Tensor spec, Tensor history, Tensor key, str rounding, str scaling, str granularity, "
    "bool power_of_two, str amax_factor, bool last, bool two_level, int hadamard, bool redrawn, bool at_rest, "
    "bool shared, str group, bool columns, bool own_scales, int use, bool by_columns, bool filled, str source)"
)
torch.library.define("altgrad::round_site", f"{_ARGUMENTS} -> (Tensor, Tensor)")
torch.library.define("altgrad::code_site", f"{_ARGUMENTS} -> (Tensor, Tensor, Tensor)")


@torch.library.impl("altgrad::round_site", "CompositeImplicitAutograd")
def _round_operator(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *mode, _ = rest
    values, counts = rounded_with_counts(x, spec, history, key, Mode(*mode), in_bits=True)
    return values, torch.stack(counts)


@torch.library.impl("altgrad::code_site", "CompositeImplicitAutograd")
def _code_operator(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *mode, _ = rest
    return _codes(x, spec, history, key, Mode(*mode), in_bits=True)
