"""Scales: which factor puts a tensor into a format's range.

A scaled value is `grid value x scale`.  The amax is taken over finite values only, so that one inf does not flatten
a whole tensor (inf saturates, NaN stays NaN), and a tensor without a finite non-zero value has scale 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from altgrad.quantization.kernel.random import materialised
from altgrad.quantization.kernel.round import FormatTensors, ulp

Granularity = Literal["tensor", "row", "block"]

BLOCK = 32  # values per scale with granularity "block", as in OCP MX v1.0
GROUP = 64  # blocks that compiled code takes at a time: 8 KiB, so that what the amax read is in the nearest cache
_FIELD = 23  # float32: bits below the exponent field
_FRACTION = 0x7FFFFF
_EXPONENT = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF
_NEXT_EXPONENT = 1 << _FIELD
_ONE = 127 << _FIELD  # bits of 1.0
_LARGEST_SCALE = 126 << _FIELD  # an exponent of 126, in place
_LARGEST_AMAX = 2.0**128 * (1 - 2.0**-20)  # leaves the roundings of 1 / inverse room below infinity


def finite_amax(x: Tensor, granularity: Granularity, infinity: Tensor | float = torch.inf) -> Tensor:
    """Largest finite magnitude: 0-d for "tensor", (..., 1) for "row", (..., blocks, 1) for "block".

    "block" wants x already in the shape of `to_blocks`, and takes `infinity` as a tensor (see `in_groups`).
    """
    if granularity == "block":  # vectors of integers are slow to reduce to one number, and blocks are short
        magnitude = x.abs()
        return torch.where(magnitude < infinity, magnitude, 0.0).amax(dim=-1, keepdim=True)
    # The bits of magnitudes are ordered like their values; one exponent more makes inf and NaN negative.
    bits = (x.view(torch.int32) & _MAGNITUDE) + _NEXT_EXPONENT
    largest = bits.amax() if granularity == "tensor" else bits.amax(dim=-1, keepdim=True)
    return (largest.clamp(min=_NEXT_EXPONENT) - _NEXT_EXPONENT).view(torch.float32)


def to_blocks(x: Tensor) -> Tensor:
    """(..., n) -> (..., ceil(n / 32), 32); the last block of a row is padded with zeros."""
    missing = -x.shape[-1] % BLOCK
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    return x.unflatten(-1, (-1, BLOCK))


def in_groups(blocks: Tensor, fmt: FormatTensors) -> tuple[Tensor, FormatTensors]:
    """Blocks as (groups, GROUP, 32), and the format as a compiler wants it that is to nest the loops over them.

    Amax, scale and rounding of a group in one loop over the groups read the data once.  Inductor would merge groups and
    blocks into one dimension, and then make three passes.  What each of the three reads once per block of a group
    prevents that.  Unchanged where the blocks do not fill groups.
    """
    if blocks.numel() % (GROUP * BLOCK):
        return blocks, fmt
    per_block = {
        name: materialised(getattr(fmt, name).repeat(GROUP, 1)) for name in ("min_normal_bits", "max", "infinity")
    }
    return blocks.reshape(-1, GROUP, BLOCK), fmt._replace(**per_block)


def from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """Undo `to_blocks`: back to the shape of `like`."""
    return blocks.flatten(-2)[..., : like.shape[-1]]


def scale_for(amax: Tensor, fmt: FormatTensors, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """(scale, inverse scale) that put values up to `amax` into the format; shapes as `amax`.

    Power of two: the one with amax / scale in (max / 2, max], exact to apply.
    Real: the inverse is max / amax, rounded so that amax itself does not overflow.
    Both stay within 2^-126 to 2^126, and max * scale stays finite: values near float32's largest saturate instead.
    amax = 0 gives 1, and so does a format that is not `scaled` (BF16, FP16).
    Two's complement: `max` is 127 of INT8, so that only values without a scale reach -128.
    """
    amax = amax * fmt.takes_scale
    return _power_of_two_scale(amax, fmt) if power_of_two else _real_scale(amax, fmt)


def settled_amax(amax: Tensor, fmt: FormatTensors) -> Tensor:
    """amax of a stored tensor after a small update: one that would round back to the largest value counts as it.

    Otherwise an update of a thousandth of a ULP to the largest weight doubles the (power-of-two) scale, and every
    weight is rounded anew to a grid twice as coarse.
    """
    scale, inverse = _power_of_two_scale(amax, fmt)
    half_ulp = ulp(fmt.max, fmt) * 0.5
    settles = (amax * inverse * 2 < fmt.max + half_ulp) & (fmt.takes_scale > 0)
    return torch.where(settles, fmt.max * (scale * 0.5), amax)


def _power_of_two_scale(amax: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """On the bits: their difference, rounded up to whole exponents, is ceil(log2(amax / max)) in the exponent field.

    Few operations matter: with one scale per block they are half of the work.
    """
    max_bits = fmt.max.view(torch.int32)
    furthest = fmt.lowest.view(torch.int32) & _EXPONENT  # of 128 for INT8, whose max is 127
    ceiling = torch.clamp((254 << _FIELD) - furthest, max=_LARGEST_SCALE)
    exponent = (amax.view(torch.int32) - max_bits + _FRACTION) & ~_FRACTION
    exponent = torch.minimum(exponent.clamp(min=-_LARGEST_SCALE), ceiling)
    exponent = torch.where(amax > 0, exponent, 0)
    return (_ONE + exponent).view(torch.float32), (_ONE - exponent).view(torch.float32)


def _real_scale(amax: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    inverse = (fmt.max / amax.clamp(max=_LARGEST_AMAX)).clamp(2.0**-126, 2.0**126)
    inverse = torch.where(amax > 0, inverse, 1.0)
    one_less = (inverse.view(torch.int32) - 1).view(torch.float32)
    inverse = torch.where(amax * inverse > fmt.max, one_less, inverse)
    return 1.0 / inverse, inverse
