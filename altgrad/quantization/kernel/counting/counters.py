"""Counts that a site takes in the same pass as its rounding: overflow, underflow, saturation, amax and scale."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from altgrad.quantization.kernel.round import FormatTensors
from altgrad.quantization.kernel.tiles import largest_divisor

# Counts of every step, in this order: values that are not zero; of these, how many lie beyond the largest finite value,
# are rounded to zero, are rounded to the largest finite value; number of uses (1 per rounding); the finite amax; the
# largest scale.  Over several uses the first SUMS are added; of amax and scale the larger is kept.
COUNTERS = ("nonzero", "overflow", "underflow", "saturated", "uses", "amax", "scale")
SUMS = 5

_MAGNITUDE = 0x7FFFFFFF
_QUARTER, _HALF = 15, 31  # bits of each of the four, or two, numbers that a GPU adds in one int64
_AT_ONCE = 8192  # numbers that one program of a GPU reduces
_GROUP = 4096  # of more numbers, so many at a time first
_ONE = 127 << 23  # bits of the scale 1.0
_ROW = 256  # values of a row from which reading one more number for it costs next to nothing


def count(
    x: Tensor, scaled: Tensor, magnitude: Tensor, fmt: FormatTensors, amax: Tensor, scale: Tensor | None, in_bits: bool
) -> list[Tensor]:
    """The values of `COUNTERS` for one rounding, each 0-d.

    amax: of all values, or of each row or tile.  scale: None if nothing is scaled.  scaled: x / scale.  magnitude:
    |scaled| rounded, before the overflow rule.  `in_bits`: compute on the bits of float32, which compiles to fewer
    instructions.
    """
    if in_bits and x.device.type != "cpu":
        return _packed(x, scaled, magnitude, fmt, amax, scale)
    scale = torch.ones_like(amax) if scale is None else scale
    if fmt.max.ndim:  # `in_groups` was applied; sums per group stop Inductor from splitting its loop into passes
        number: Callable[[Tensor], Tensor] = functools.partial(_number_in_groups, fmt)
        amax, scale = amax.amax(dim=(1, 2)), scale.amax(dim=(1, 2))
    else:
        number = _number_in_bits if in_bits else torch.count_nonzero
    nonzero = number(x)
    overflow = number((scaled + fmt.centre).abs() > fmt.reach)
    underflow = nonzero - number(magnitude)
    saturated = number(magnitude >= fmt.max)
    sums = [n.to(torch.float32) for n in (nonzero, overflow, underflow, saturated)]
    return [*sums, torch.ones_like(amax.max()), amax.max(), scale.max()]


def of_parts(counts: Sequence[list[Tensor]]) -> list[Tensor]:
    """The counts of one rounding from those of its parts: numbers are added; uses, amax and scale are alike."""
    if len(counts) < 2:
        return counts[0] if counts else []
    added = [functools.reduce(torch.add, numbers) for numbers in zip(*counts, strict=True)]
    return added[: SUMS - 1] + counts[0][SUMS - 1 :]


def _packed(
    x: Tensor, scaled: Tensor, magnitude: Tensor, fmt: FormatTensors, amax: Tensor, scale: Tensor | None
) -> list[Tensor]:
    """As `count`, in few kernels of a GPU: the four numbers of a row or tile are added as fields of one int64.

    A row of 4096 values of which 4000 are not zero and 3 are saturated gives 4000 + 3 * 2^45.  The kernel that rounds
    also adds the fields of each row or tile and keeps its amax and scale in another int64; one kernel reduces those of
    up to 8192 rows or tiles, two those of more.
    """
    indicators = (_is_set(x), (scaled + fmt.centre).abs() > fmt.reach, _is_set(magnitude), magnitude >= fmt.max)
    along = (1, 3) if x.ndim == 4 else (x.ndim - 1,)
    values = math.prod([x.shape[dimension] for dimension in along])
    bits = _QUARTER if values < 1 << _QUARTER else _HALF
    packs = [indicators] if bits == _QUARTER else [indicators[:2], indicators[2:]]
    parts = [_packed_sum(pack, bits, along) for pack in packs]
    pairs = _pair(amax.view(torch.int32), _ONE if scale is None else scale.view(torch.int32).to(torch.int64)).flatten()
    alike = pairs.numel() == parts[0].numel()
    if alike and values >= _ROW:
        # So that the kernel that rounds also computes the scales, and no other one before it.
        pairs = _beside(pairs, parts[0])
    limit = min(_GROUP, ((1 << _HALF) - 1) // values)  # of rows or tiles whose numbers fit into a field together
    if pairs.numel() > _AT_ONCE:
        pairs = _grouped_pairs(_beside(pairs, parts[0]), limit) if alike else _grouped_pairs(pairs, _GROUP)
    if parts[0].numel() > _AT_ONCE:
        parts, bits = _grouped_parts(parts, bits, limit), _HALF
    nonzero, overflow, kept, saturated = [
        _field(part, place, bits).sum().to(torch.float32) for part in parts for place in range(4 // len(parts))
    ]
    pairs = _beside(pairs, parts[0]) if alike else pairs
    largest, largest_scale = (
        part.max().to(torch.int32).view(torch.float32) for part in (pairs >> 32, pairs & 0xFFFFFFFF)
    )
    return [nonzero, overflow, nonzero - kept, saturated, _one_beside(nonzero), largest, largest_scale]


def _packed_sum(indicators: Sequence[Tensor], bits: int, along: tuple[int, ...]) -> Tensor:
    """How often each is true `along` some dimensions, as fields of one int64 for each row or tile (1-d)."""
    fields = [indicator.to(torch.int64) << (bits * place) for place, indicator in enumerate(indicators)]
    return functools.reduce(torch.add, fields).sum(dim=along).flatten()


def _grouped_parts(parts: Sequence[Tensor], bits: int, limit: int) -> list[Tensor]:
    """Packed sums of groups of up to `limit` rows or tiles, as two fields of `_HALF` bits in each of two int64."""
    size = largest_divisor(parts[0].numel(), limit)
    groups = [part.view(-1, size) for part in parts]
    fields = [_field(group, place, bits).sum(dim=1) for group in groups for place in range(4 // len(groups))]
    return [fields[0] | (fields[1] << _HALF), fields[2] | (fields[3] << _HALF)]


def _grouped_pairs(pairs: Tensor, limit: int) -> Tensor:
    """The largest of each half of the pairs of groups of up to `limit` rows or tiles."""
    groups = pairs.view(-1, largest_divisor(pairs.numel(), limit))
    return _pair((groups >> 32).amax(dim=1), (groups & 0xFFFFFFFF).amax(dim=1))


def _field(packed: Tensor, place: int, bits: int) -> Tensor:
    return (packed >> (bits * place)) & ((1 << bits) - 1)


def _pair(high: Tensor, low: Tensor | int) -> Tensor:
    """Two numbers of 31 bits in one int64, so that one kernel reduces both; low: int64."""
    return (high.to(torch.int64) << 32) | low


def _beside(pairs: Tensor, parts: Tensor) -> Tensor:
    """The pairs; Inductor computes them in the kernel of `parts`, which are never negative, since they read these."""
    return pairs + (parts < 0)


def _one_beside(number: Tensor) -> Tensor:
    """1, written by the kernel that computes `number` (not negative); a constant would take a launch of its own."""
    return (number > -1).to(torch.float32)


def _is_set(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & _MAGNITUDE) != 0


def _number_in_bits(x: Tensor) -> Tensor:
    """Number of values that are not zero (NaN counts), summed as int32, which compiles to few vector instructions."""
    ones = x if x.dtype == torch.bool else (x.view(torch.int32) & _MAGNITUDE).clamp_(max=1)
    return ones.sum(dtype=torch.int32)


def _number_in_groups(fmt: FormatTensors, x: Tensor) -> Tensor:
    """As `_number_in_bits`, summed per group first.

    The 1 is computed from a tensor with one value per block, which stops Inductor from merging groups and blocks (see
    `in_groups`).
    """
    one = (fmt.infinity.view(torch.int32) >> 23) - 254
    ones = x if x.dtype == torch.bool else torch.minimum(x.view(torch.int32) & _MAGNITUDE, one)
    return ones.sum(dim=(1, 2), dtype=torch.int32).sum(dtype=torch.int32)
