"""Scales: the factors that put a tensor into a format's range.

The stored value is `grid value x scale`.  With E4M3 (largest value 448) an amax of 1000 gets the power-of-two scale 4,
because 1000 / 4 = 250 lies in (224, 448]; its real scale is 1000 / 448 = 2.23.  The amax is taken over finite values
only, so that one inf does not round all other values to zero (inf saturates, NaN stays NaN).  A tensor without a finite
non-zero value has scale 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad.quantization.kernel.round import FormatTensors, round_magnitude, ulp

_FIELD = 23  # float32: bits below the exponent field
_FRACTION = 0x7FFFFF
_EXPONENT = 0x7F800000
_ONE = 127 << _FIELD  # bits of 1.0
_LARGEST_SCALE = 126 << _FIELD  # the exponent 126, shifted to the exponent field
_LEAST_TENSOR_SCALE = 2.0**-120  # times E4M3's smallest normal value, 2^-6: the inverse of that, 2^126, is finite
_LARGEST_AMAX = 2.0**128 * (1 - 2.0**-20)  # so far below infinity that 1 / inverse, rounded up, stays finite


def scale_for(amax: Tensor, fmt: FormatTensors, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """(scale, inverse scale) that put values up to `amax` into the format; both have the shape of `amax`.

    Power of two: applying it is exact; with the rule "ceil", amax / scale lies in (max / 2, max].
    Real: the scale is 1 / (max / amax); the inverse is max / amax, an ULP less where amax itself would overflow.
    Both stay within 2^-126 to 2^126, and max * scale stays finite: values near float32's largest saturate instead.
    An amax of 0 gives scale 1, and so does a format that is never scaled (`fmt.scaled` False: BF16, FP16).
    Two's complement: max is 127 for INT8, so that only unscaled values reach -128.
    """
    amax = amax * fmt.takes_scale
    return _power_of_two_scale(amax, fmt) if power_of_two else _real_scale(amax, fmt)


def two_level_scale(
    amax: Tensor, tensor_amax: Tensor, fmt: FormatTensors, scale_format: FormatTensors
) -> tuple[Tensor, Tensor, Tensor]:
    """(FP32 scale of the tensor, scales of its tiles, inverse of their product): two-level scales, as NVFP4 has them.

    The scale of a tile is rounded to an 8-bit format (E4M3).  The FP32 scale of the tensor is tensor_amax / (448 x 6)
    for E2M1, so that the tile with the largest amax gets the E4M3 scale 448.  A tile's E4M3 scale is amax / 6 / FP32
    scale, rounded to nearest and clamped to the normal values of E4M3, 2^-6 to 448.  Tensor amax 12, tile amax 3: FP32
    scale 12 / 2688, E4M3 scale 0.5 x 2688 / 12 = 112, and their product is 0.5 = 3 / 6.
    amax: of each tile; tensor_amax: 0-d.  The FP32 scale of a tensor of zeros is 1, and never below 2^-120: otherwise
    the inverse scale of a tile of zeros would overflow beside values below 5e-34, and 0 x inf is NaN.  Near float32's
    largest value the tensor's amax counts as so much less that max x scale stays finite: those values saturate.
    """
    tensor_amax = torch.minimum(tensor_amax, _LARGEST_AMAX * fmt.max.clamp(max=1.0))
    whole = torch.where(tensor_amax > 0, tensor_amax / (scale_format.max * fmt.max), 1.0).clamp(min=_LEAST_TENSOR_SCALE)
    least = scale_format.min_normal_bits.view(torch.float32)
    wanted = (amax / fmt.max / whole).clamp(min=least)
    rounded = torch.minimum(round_magnitude(wanted, scale_format, "nearest"), scale_format.max)
    return whole, rounded, (1.0 / whole) / rounded


def settled_amax(amax: Tensor, fmt: FormatTensors) -> Tensor:
    """The amax of a stored weight, lowered to the largest grid value if it would round back to that.

    Without this, a tiny update of the largest weight doubles the power-of-two scale, and every weight is rounded to a
    grid twice as coarse.  A weight in E4M3 with scale 1 and amax 448 that an update moves to 448.03 would get scale 2;
    448.03 is less than half a ULP (16) above 448, so that its amax counts as 448 and the scale stays 1.
    """
    scale, inverse = _power_of_two_scale(amax, fmt)
    half_ulp = ulp(fmt.max, fmt) * 0.5
    settles = (amax * inverse * 2 < fmt.max + half_ulp) & (fmt.takes_scale > 0)
    return torch.where(settles, fmt.max * (scale * 0.5), amax)


def _power_of_two_scale(amax: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """Power-of-two (scale, inverse), by the rule in `fmt.scale_addend`, computed on the bits of float32.

    One graph serves all rules.  It takes few operations, which matters because scales of small blocks are half of the
    work.
    """
    furthest = fmt.lowest.view(torch.int32) & _EXPONENT  # exponent of |lowest|, which is 128 for INT8, whose max is 127
    ceiling = torch.clamp((254 << _FIELD) - furthest, max=_LARGEST_SCALE)
    exponent = ((amax.view(torch.int32) + fmt.scale_addend) & ~_FRACTION) - (fmt.max.view(torch.int32) & ~_FRACTION)
    exponent = torch.minimum(exponent.clamp(min=-_LARGEST_SCALE), ceiling)
    exponent = torch.where(amax > 0, exponent, 0)
    return (_ONE + exponent).view(torch.float32), (_ONE - exponent).view(torch.float32)


def _real_scale(amax: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    inverse = (fmt.max / amax.clamp(max=_LARGEST_AMAX)).clamp(2.0**-126, 2.0**126)
    inverse = torch.where(amax > 0, inverse, 1.0)
    one_less = (inverse.view(torch.int32) - 1).view(torch.float32)
    return 1.0 / inverse, torch.where(amax * inverse > fmt.max, one_less, inverse)
