"""Slow second implementations of rounding, scaling and the three GEMMs, from the definitions alone.

Nothing here shares code with the kernel: values are decoded from the fields of their code with rational
arithmetic, a number is rounded by looking for its neighbours in the list of all grid values, scales come from
loops over single elements, GEMMs from sums in float64.  Slow, and good for formats of at most 16 bits.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from fractions import Fraction
from functools import cache

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np

from altgrad.formats import FORMATS, NumberFormat

BLOCK = 32
SMALLEST = 2.0**-149  # of float32
LARGEST = (2 - 2.0**-23) * 2.0**127

# Formats published elsewhere, with the numpy type that implements them.
PUBLISHED = [
    (FORMATS["E4M3"], ml_dtypes.float8_e4m3fn),
    (FORMATS["E5M2"], ml_dtypes.float8_e5m2),
    (FORMATS["BF16"], ml_dtypes.bfloat16),
    (FORMATS["FP16"], np.float16),
    (FORMATS["FP32"], np.float32),
    *((FORMATS[name], getattr(ml_dtypes, name)) for name in FORMATS if name.startswith("float8_")),
    (FORMATS["E2M1"], ml_dtypes.float4_e2m1fn),
    (FORMATS["E2M3"], ml_dtypes.float6_e2m3fn),
    (FORMATS["E3M2"], ml_dtypes.float6_e3m2fn),
]

_IN_GFLOAT = {
    **{name: f"ocp_{name.lower()}" for name in ("E4M3", "E5M2", "E3M2", "E2M3", "E2M1")},
    **{"BF16": "bfloat16", "FP16": "binary16"},
}


def decode(fmt: NumberFormat, code: int) -> Fraction:
    """Magnitude of a code without its sign, from the textbook: 0.fraction or 1.fraction times a power of two."""
    exponent_field = code >> fmt.mantissa_bits
    fraction = Fraction(code % 2**fmt.mantissa_bits, 2**fmt.mantissa_bits)
    if fmt.specials == "twos_complement":
        return Fraction(code)
    if fmt.exponent_bits == 0:
        return Fraction(code, 2**fmt.mantissa_bits)
    if exponent_field == 0:
        return fraction * Fraction(2) ** (1 - fmt.bias)
    return (1 + fraction) * Fraction(2) ** (exponent_field - fmt.bias)


@cache
def grid(fmt: NumberFormat) -> tuple[Fraction, ...]:
    """Finite magnitudes in rising order, and above them the one value that the format would have next."""
    not_finite = {"ieee": 2**fmt.mantissa_bits, "fn": 1, "extended": 1}.get(fmt.specials, 0)
    codes = 2 ** (fmt.exponent_bits + fmt.mantissa_bits) - not_finite
    return tuple(decode(fmt, code) for code in range(codes + 1))


def signed(magnitude: np.ndarray, x: np.ndarray, fmt: NumberFormat) -> np.ndarray:
    """Magnitudes with the sign of x; formats with fewer codes have no negative zero."""
    result = np.where(np.signbit(x), -magnitude, magnitude)
    return np.where(result == 0, 0.0, result) if fmt.specials not in ("finite", "ieee", "fn") else result


@cache
def _scaled_grid(fmt: NumberFormat) -> tuple[int, ...]:
    """The grid as integers, in units of 2^-150: half the smallest float32, so that midpoints are integers too."""
    scaled = [value * 2**150 for value in grid(fmt)]
    assert all(value.denominator == 1 for value in scaled)
    return tuple(value.numerator for value in scaled)


def round_exact(x: float, fmt: NumberFormat, rounding: str = "nearest") -> float:
    """x rounded by exact integer arithmetic: find both neighbours, take the nearer, at a tie the even code.

    `rounding` is nearest, toward_zero or away (the neighbour of larger magnitude: with toward_zero the two
    results that stochastic rounding may have).
    """
    if math.isnan(x):
        return x
    values = _scaled_grid(fmt)
    one_more = fmt.specials == "twos_complement" and x < 0  # -128 beside 127
    largest = len(values) - 2 + one_more
    if math.isinf(x):
        beyond, code = True, 0
    else:
        numerator, denominator = abs(x).as_integer_ratio()
        code = _rounded_code(Fraction(numerator * 2**150, denominator), values, rounding)
        beyond = code > largest
        if one_more and rounding == "toward_zero" and abs(x) >= largest:
            code = largest
    if beyond:
        code = largest
    magnitude = math.inf if beyond and fmt.overflow == "inf" else float(Fraction(values[code], 2**150))
    return float(signed(np.array(magnitude), np.array(x), fmt))


def _rounded_code(scaled: Fraction, values: tuple[int, ...], rounding: str) -> int:
    below = bisect_right(values, scaled) - 1
    if below == len(values) - 1:  # beyond the grid by a whole step: the largest value is nearest to zero
        return below if rounding != "toward_zero" else below - 1
    if values[below] == scaled:
        return below
    above = below + 1
    if rounding == "toward_zero":
        return below
    if rounding == "away":
        return above
    twice = 2 * scaled - values[below] - values[above]
    if twice == 0:
        return below if below % 2 == 0 else above
    return below if twice < 0 else above


def round_by_search(x: np.ndarray, fmt: NumberFormat, rounding: str = "nearest") -> np.ndarray:
    """`round_exact` for whole float32 arrays: comparison with the grid and its midpoints in float64.  Any shape."""
    values = np.array([float(value) for value in grid(fmt)])
    middles = (values[:-1] + values[1:]) / 2  # exact: at most 17 significant bits
    with np.errstate(invalid="ignore"):  # signalling NaNs
        magnitude = np.abs(x.astype(np.float64))
    below = np.clip(np.searchsorted(values, magnitude, side="right") - 1, 0, len(values) - 2)
    exact = values[below] == magnitude
    up = (magnitude > middles[below]) | ((magnitude == middles[below]) & (below % 2 == 1))
    step = {"nearest": up, "toward_zero": np.zeros_like(up), "away": ~exact}[rounding]
    code = below + step
    beyond = (code == len(values) - 1) | np.isinf(x)
    top = np.full(x.shape, np.inf if fmt.overflow == "inf" else values[-2])
    if fmt.specials == "twos_complement":  # -128 beside 127
        beyond |= magnitude >= values[-1]
        top[np.signbit(x)] = values[-1]
    result = np.where(beyond, top, values[code])
    return np.where(np.isnan(x), np.nan, signed(result, x, fmt)).astype(np.float32)


def gfloat_twin(fmt: NumberFormat) -> gfloat.FormatInfo:
    """The format that gfloat itself defines; of the others our own numbers in its terms.

    Fixed point is there a format whose values are all subnormal.
    """
    if found := re.fullmatch(r"binary8p(\d)s([ef])", fmt.name):
        domain = {"e": gfloat.Domain.Extended, "f": gfloat.Domain.Finite}[found[2]]
        return gfloat.formats.format_info_p3109(8, int(found[1]), domain=domain)
    if fmt.name in _IN_GFLOAT:
        return getattr(gfloat.formats, f"format_info_{_IN_GFLOAT[fmt.name]}")
    return gfloat.FormatInfo(
        fmt.name,
        fmt.bits,
        precision=fmt.mantissa_bits + 1,
        bias=1 - fmt.min_exponent,
        is_signed=True,
        domain=gfloat.Domain.Extended if fmt.has_inf else gfloat.Domain.Finite,
        has_nz=fmt.has_negative_zero,
        num_high_nans=fmt.reserved_codes - fmt.has_inf,
        has_subnormals=True,
        is_twos_complement=fmt.specials == "twos_complement",
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal float32 bit for bit, so -0 differs from 0; all NaN count as one."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        first, second = (np.where(np.isnan(x), np.nan, x).astype(np.float32).view(np.int32) for x in (a, b))
    return bool(np.array_equal(first, second))


def power_of_two_scale(amax: float, fmt: NumberFormat) -> float:
    """Smallest power of two that brings amax to at most `fmt.max`, from 2^-126 to 2^126; 1 for amax = 0.

    Smaller where the largest scaled value would not be a float32; 1 for the references, which nobody scales.
    """
    if amax == 0 or fmt.exponent_bits == 8 or fmt.name == "FP16":
        return 1.0
    exponent = -126
    while (
        exponent < 126
        and Fraction(amax) > Fraction(fmt.max) * Fraction(2) ** exponent
        and -2 * Fraction(fmt.lowest) * Fraction(2) ** exponent <= LARGEST
    ):
        exponent += 1
    return 2.0**exponent


def groups(shape: tuple[int, ...], granularity: str) -> list[list[int]]:
    """Flat positions of the elements that share a scale: all, or those of a row, or of 32 in a row."""
    length = shape[-1]
    positions = list(range(math.prod(shape)))
    if granularity == "tensor":
        return [positions]
    width = length if granularity == "row" else BLOCK
    rows = [positions[start : start + length] for start in range(0, len(positions), length)]
    return [row[start : start + width] for row in rows for start in range(0, length, width)]


def quantise_by_hand(
    x: np.ndarray,
    fmt: NumberFormat,
    granularity: str = "tensor",
    scaled: bool = True,
    rounding: str = "nearest",
    factor: float = 1.0,
) -> tuple[np.ndarray, dict[str, float]]:
    """Scale by powers of two, round and scale back, group by group; with what a site counts on the way."""
    flat, result = x.reshape(-1), np.empty(x.size, np.float32)
    counts = dict.fromkeys(("nonzero", "overflow", "underflow", "saturated", "amax"), 0.0) | {
        "scale": -math.inf,
        "uses": 1.0,
    }
    for group in groups(x.shape, granularity):
        values = flat[group]
        amax = max((abs(float(value)) for value in values if math.isfinite(value)), default=0.0)
        scale = power_of_two_scale(amax * factor, fmt) if scaled else 1.0
        on_grid = values * np.float32(1 / scale)
        rounded = round_by_search(on_grid, fmt, rounding)
        result[group] = rounded * np.float32(scale)
        counts["amax"], counts["scale"] = max(counts["amax"], amax), max(counts["scale"], scale)
        for value, before, after in zip(values, on_grid, rounded, strict=True):
            counts["nonzero"] += value != 0
            counts["overflow"] += before > fmt.max or before < fmt.lowest
            counts["underflow"] += value != 0 and after == 0
            counts["saturated"] += abs(after) >= fmt.max
    return result.reshape(x.shape), counts
