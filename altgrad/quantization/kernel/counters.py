"""What a site counts while it rounds, in the same pass: overflow, underflow, saturation, amax and scale."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from altgrad.quantization.kernel.round import FormatTensors

# What a site counts on every step, in this order: values that are not zero; of these those beyond the largest finite
# value, those rounded to zero, those that landed on the largest finite value; the uses (1); the finite amax; the
# largest scale.  The first five add up over several uses.
COUNTERS = ("nonzero", "overflow", "underflow", "saturated", "uses", "amax", "scale")
SUMS = 5

_MAGNITUDE = 0x7FFFFFFF


def count(
    x: Tensor, scaled: Tensor, magnitude: Tensor, fmt: FormatTensors, amax: Tensor, scale: Tensor, in_bits: bool
) -> list[Tensor]:
    """The values of `COUNTERS` for one rounding, each 0-d.

    scaled: x in the format's range.  magnitude: |scaled| rounded, before overflow.  `in_bits`: in the way that compiles
    to the fewest instructions.
    """
    if fmt.max.ndim:  # a sum of each group (see `in_groups`) keeps its loops nested
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


def _number_in_bits(x: Tensor) -> Tensor:
    """How many are not zero, NaN included, in 32-bit integers, which compile to few vector instructions."""
    ones = x if x.dtype == torch.bool else (x.view(torch.int32) & _MAGNITUDE).clamp_(max=1)
    return ones.sum(dtype=torch.int32)


def _number_in_groups(fmt: FormatTensors, x: Tensor) -> Tensor:
    """As `_number_in_bits`, group by group; the 1 is read per block, like all that `in_groups` keeps from merging."""
    one = (fmt.infinity.view(torch.int32) >> 23) - 254
    ones = x if x.dtype == torch.bool else torch.minimum(x.view(torch.int32) & _MAGNITUDE, one)
    return ones.sum(dim=(1, 2), dtype=torch.int32).sum(dtype=torch.int32)
