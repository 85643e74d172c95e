"""Conversion between values and their codes, the bit patterns under which a format is published.

`NumberFormat.decode` defines the value of each code; both directions follow from it and from the kernel's grid index.
They are meant for storing and exchanging tensors, not for a training step: both check their input for values or codes
that the format does not have, which synchronises with the device.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.round import FormatTensors, grid_index

_LONGEST = 16


def encode(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Codes of a format's values: uint8 for formats of up to 8 bits (in the low bits), else int16; shaped like x.

    x: float32, any shape, already rounded (`round_to_format`); it may hold infinity and NaN if the format has them.
    NaN becomes the quiet NaN with the sign of x; -0 becomes 0 if the format has no negative zero.
    Raises TypeError for another dtype, ValueError for a value that is not in the format or a format of over 16 bits.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"encode: x has dtype {x.dtype}; formats are simulated in torch.float32")
    _check_width(fmt)
    negative = x.view(torch.int32) < 0
    magnitude = grid_index(x.clamp(fmt.lowest, fmt.max), FormatTensors.of(fmt, x.device)).abs()
    magnitude = torch.where(x.isinf(), fmt.max_index + 1, magnitude)
    if fmt.specials == "twos_complement":
        code = torch.where(negative, -magnitude, magnitude) & (2**fmt.bits - 1)
    else:
        sign = negative & (fmt.has_negative_zero | (magnitude > 0))
        code = magnitude + sign.int() * 2 ** (fmt.bits - 1)
    if fmt.nan_code is not None:
        signed = fmt.nan_code + (negative & fmt.has_negative_zero).int() * 2 ** (fmt.bits - 1)
        code = torch.where(x.isnan(), signed, code)
    codes = code.to(torch.uint8 if fmt.bits <= 8 else torch.int16)
    back = decode(codes, fmt)
    strange = (back != x) & ~(back.isnan() & x.isnan())
    if strange.any():
        raise ValueError(
            f"encode: {int(strange.sum())} of {x.numel()} values are not values of {fmt}, such as "
            f"{x[strange][0].item():.9g}; round them first (round_to_format)"
        )
    return codes


def decode(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """float32 values of integer codes of any shape; the sign bit is the highest of the format's `bits`.

    Raises TypeError for codes that are not integers, ValueError for a code with more bits than the format.
    """
    _check_width(fmt)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"decode: codes have dtype {codes.dtype}; a code is an integer")
    places = codes.to(torch.int64)
    if codes.dtype == torch.int16:
        places = places & 0xFFFF
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < 2**fmt.bits:
        raise ValueError(f"decode: codes from {int(places.min())} to {int(places.max())}; {fmt} has {fmt.bits} bits")
    return _values(fmt).to(codes.device)[places]


@functools.cache
def _values(fmt: NumberFormat) -> Tensor:
    return torch.tensor([fmt.decode(code) for code in range(2**fmt.bits)], dtype=torch.float32)


def _check_width(fmt: NumberFormat) -> None:
    if fmt.bits > _LONGEST:
        raise ValueError(f"format={fmt.name!r} has {fmt.bits} bits; codes are for at most {_LONGEST}")
