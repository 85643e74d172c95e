"""Dynamic range expansion: optimizer moments use few of a format's binades; a power spreads them over all.

COAT (arXiv 2410.19313, section 4): a group x that shares a scale has the range R = max|x| / min|x|, and becomes
sign(x) |x|^k with k = log(range of the format) / log(R), so that its range is the format's.  It is rounded, and what
comes back is raised to 1/k.  E4M3 reaches from 2^-9 to 448, a range of 2^17.8; a group from 1e-6 to 1e-4 has 2^6.6,
hence k = 2.7, and its smallest value lands on the smallest of the format instead of seven binades above it.

Zeros stay zero and count for no range.  A group whose values all have one magnitude has none: k = 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.tiles import join, split


def range_log2(fmt: NumberFormat) -> float:
    """log2 of the largest over the smallest positive value of a format."""
    return math.log2(fmt.max) - math.log2(fmt.value(1))


class Expanded(NamedTuple):
    """A tensor raised to a power, group by group, with 1 for each group's largest magnitude."""

    values: Tensor  # in the shape of what was expanded
    exponent: Tensor  # k of each group, in the shape of `split` with groups of size 1
    middle: Tensor  # sqrt(max|x| min|x|) of each group, likewise
    shift: Tensor  # what the power makes of max|x| / middle, likewise
    granularity: str

    def contracted(self, rounded: Tensor) -> Tensor:
        """Undo the power in what was made of `values`."""
        groups = split(rounded, self.granularity, True)
        magnitude = (groups.abs() * self.shift).pow(1 / self.exponent).mul_(self.middle)
        return join(magnitude.copysign(groups), rounded, self.granularity, True)


def expanded(x: Tensor, fmt: NumberFormat, granularity: str) -> Expanded:
    """x (1-d float32) with the range of each group, the whole or a 1xB tile, that of the format.

    The power is taken of x / sqrt(max|x| min|x|), which neither overflows nor underflows; that changes a group's scale
    and nothing else.  NaN stays NaN, and inf inf.
    """
    groups = split(x, granularity, True)
    magnitude = groups.abs()
    there = (magnitude > 0) & (magnitude < torch.inf)
    largest = torch.where(there, magnitude, 0.0).amax(-1, keepdim=True)
    smallest = torch.where(there, magnitude, torch.inf).amin(-1, keepdim=True)
    octaves = largest.log2() - smallest.log2()
    has_range = (largest > smallest) & (octaves > 0)  # neither is so in a group of zeros
    whole = range_log2(fmt)
    exponent = torch.where(has_range, whole / octaves, 1.0)
    one_size = torch.where(largest > 0, largest, 1.0)
    middle = torch.where(has_range, largest.sqrt() * smallest.sqrt(), one_size)
    shift = torch.where(has_range, 2.0 ** (whole / 2), 1.0)
    values = (magnitude / middle).pow(exponent).div_(shift).copysign(groups)
    return Expanded(join(values, x, granularity, True), exponent, middle, shift, granularity)
