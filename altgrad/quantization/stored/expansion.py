"""Dynamic range expansion: spreads the values of an optimizer moment over all binades of a format, by a power.

COAT (arXiv 2410.19313, section 4): the values x of a group with one scale have the range R = max|x| / min|x|.  They are
replaced by sign(x) |x|^k with k = log(range of the format) / log(R), which have the range of the format, and rounded;
the rounded values are raised to 1/k.  Example: E4M3 reaches from 2^-9 to 448, a range of 2^17.8.  A group from 1e-6 to
1e-4 has the range 2^6.6, so that k = 2.7: its smallest value becomes the smallest of the format.  Without expansion it
would lie 11 binades above that, and these would be unused.

Zeros stay zero and do not count for the range.  If all values of a group have one magnitude, k = 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.tiles import join, split


def range_log2(fmt: NumberFormat) -> float:
    """log2 of the ratio of a format's largest to its smallest positive value."""
    return math.log2(fmt.max) - math.log2(fmt.value(1))


class Expanded(NamedTuple):
    """A tensor raised to a power group by group, so that the largest magnitude of each group is 1."""

    values: Tensor  # in the shape of the original tensor
    exponent: Tensor  # k of each group, in the shape of `split` with groups of size 1
    middle: Tensor  # sqrt(max|x| min|x|) of each group, in the same shape
    shift: Tensor  # (max|x| / middle)^k of each group, in the same shape
    granularity: str

    def contracted(self, rounded: Tensor) -> Tensor:
        """Undo the power, for the rounded `values`."""
        groups = split(rounded, self.granularity, True)
        magnitude = (groups.abs() * self.shift).pow(1 / self.exponent).mul_(self.middle)
        return join(magnitude.copysign(groups), rounded, self.granularity, True)


def expanded(x: Tensor, fmt: NumberFormat, granularity: str) -> Expanded:
    """x (float32), expanded so that each group (a row of the last dimension or a 1xB tile) has the range of the format.

    The power is taken of x / sqrt(max|x| min|x|), which neither overflows nor underflows; the factor only changes the
    scale of the group.  NaN stays NaN, and inf stays inf.
    """
    groups = split(x, granularity, True)
    magnitude = groups.abs()
    there = (magnitude > 0) & (magnitude < torch.inf)
    largest = torch.where(there, magnitude, 0.0).amax(-1, keepdim=True)
    smallest = torch.where(there, magnitude, torch.inf).amin(-1, keepdim=True)
    octaves = largest.log2() - smallest.log2()
    has_range = (largest > smallest) & (octaves > 0)  # both are false in a group of zeros
    whole = range_log2(fmt)
    exponent = torch.where(has_range, whole / octaves, 1.0)
    one_size = torch.where(largest > 0, largest, 1.0)
    middle = torch.where(has_range, largest.sqrt() * smallest.sqrt(), one_size)
    shift = torch.where(has_range, 2.0 ** (whole / 2), 1.0)
    values = (magnitude / middle).pow(exponent).div_(shift).copysign(groups)
    return Expanded(join(values, x, granularity, True), exponent, middle, shift, granularity)
