"""Counts that a site takes in the same pass as its rounding: overflow, underflow, saturation, amax and scale."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from altgrad.quantization.kernel.round import FormatTensors

# Counts of every step, in this order: values that are not zero; of these, how many lie beyond the largest finite value,
# are rounded to zero, are rounded to the largest finite value; number of uses (1 per rounding); the finite amax; the
# largest scale.  Over several uses the first SUMS are added; of amax and scale the larger is kept.
COUNTERS = ("nonzero", "overflow", "underflow", "saturated", "uses", "amax", "scale")
SUMS = 5

_MAGNITUDE = 0x7FFFFFFF


def count(
    x: Tensor, scaled: Tensor, magnitude: Tensor, fmt: FormatTensors, amax: Tensor, scale: Tensor, in_bits: bool
) -> list[Tensor]:
    """The values of `COUNTERS` for one rounding, each 0-d.

    scaled: x / scale.  magnitude: |scaled| rounded, before the overflow rule.  `in_bits`: compute on the bits of
    float32, which compiles to fewer instructions.
    """
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
