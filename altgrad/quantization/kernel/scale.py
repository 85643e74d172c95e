"""Scales: which factor puts a tensor into a format's range.

A scaled value is `grid value x scale`.  The amax is taken over finite values only, so that one inf does not flatten
a whole tensor (inf saturates, NaN stays NaN), and a tensor without a finite non-zero value has scale 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad.quantization.kernel.round import FormatTensors, round_magnitude, ulp

_FIELD = 23  # float32: bits below the exponent field
_FRACTION = 0x7FFFFF
_EXPONENT = 0x7F800000
_ONE = 127 << _FIELD  # bits of 1.0
_LARGEST_SCALE = 126 << _FIELD  # an exponent of 126, in place
_LARGEST_AMAX = 2.0**128 * (1 - 2.0**-20)  # leaves the roundings of 1 / inverse room below infinity


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


def two_level_scale(
    amax: Tensor, tensor_amax: Tensor, fmt: FormatTensors, scale_format: FormatTensors
) -> tuple[Tensor, Tensor]:
    """(scale, inverse scale) of tiles whose scales are themselves rounded to an 8-bit format (NVFP4: E4M3).

    One FP32 scale per tensor, amax / (448 x 6) for E2M1, puts the largest tile's scale at 448; each tile's is its
    amax / 6 in units of that, rounded to nearest and kept within the normal values of E4M3, 2^-6 to 448.
    amax: of each tile; tensor_amax: 0-d.  A tensor of zeros has 1 in place of its FP32 scale.
    """
    whole = torch.where(tensor_amax > 0, tensor_amax / (scale_format.max * fmt.max), 1.0).clamp(min=2.0**-126)
    least = scale_format.min_normal_bits.view(torch.float32)
    wanted = (amax / fmt.max / whole).clamp(min=least)
    rounded = torch.minimum(round_magnitude(wanted, scale_format, "nearest"), scale_format.max)
    return whole * rounded, (1.0 / whole) / rounded


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
    """On the bits, by the rule that `fmt.scale_addend` holds: a graph for all rules, and few operations, which with one
    scale per block are half of the work."""
    furthest = fmt.lowest.view(torch.int32) & _EXPONENT  # of 128 for INT8, whose max is 127
    ceiling = torch.clamp((254 << _FIELD) - furthest, max=_LARGEST_SCALE)
    exponent = ((amax.view(torch.int32) + fmt.scale_addend) & ~_FRACTION) - (fmt.max.view(torch.int32) & ~_FRACTION)
    exponent = torch.minimum(exponent.clamp(min=-_LARGEST_SCALE), ceiling)
    exponent = torch.where(amax > 0, exponent, 0)
    return (_ONE + exponent).view(torch.float32), (_ONE - exponent).view(torch.float32)


def _real_scale(amax: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    inverse = (fmt.max / amax.clamp(max=_LARGEST_AMAX)).clamp(2.0**-126, 2.0**126)
    inverse = torch.where(amax > 0, inverse, 1.0)
    one_less = (inverse.view(torch.int32) - 1).view(torch.float32)
    inverse = torch.where(amax * inverse > fmt.max, one_less, inverse)
    return 1.0 / inverse, inverse
