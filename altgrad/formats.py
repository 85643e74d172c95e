"""Number formats as data: sign, exponent bits, mantissa bits, bias, and how many top codes are special.

Everything else (range, ULP, grid) is derived, so that a format cannot contradict itself and one rounding
kernel serves all.  Codes are sign-magnitude; the *index* of a magnitude is its code without the sign, so
neighbouring grid values have neighbouring indices.  No torch here: the dashboard reads this module too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from altgrad.hints import did_you_mean, shown

Overflow = Literal["saturate", "inf"]

FLOAT32_MIN_EXPONENT, FLOAT32_MAX_EXPONENT = -126, 127  # of its normal values


@dataclass(frozen=True)
class NumberFormat:
    """A signed binary format whose values are a finite subset of float32.

    `reserved_codes` counts the codes at the top of each sign that are not finite numbers (inf, NaN).
    `overflow` says what a finite value beyond `max` becomes: the largest finite value or infinity.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    reserved_codes: int = 0
    has_inf: bool = False
    overflow: Overflow = "saturate"

    def __post_init__(self) -> None:
        if self.exponent_bits < 0 or self.mantissa_bits < 0 or not 1 <= self.exponent_bits + self.mantissa_bits <= 31:
            raise ValueError(f"format={self.name!r}: E and M must be >= 0 and E + M from 1 to 31")
        if self.exponent_bits == 0 and self.bias != 0:
            raise ValueError(f"format={self.name!r}: without exponent bits there is no bias; leave it out")
        if self.overflow == "inf" and not self.has_inf:
            raise ValueError(f"format={self.name!r} has no infinity; overflow must be 'saturate'")
        lowest = self.min_exponent
        highest = lowest - 1 + (self.max_index >> self.mantissa_bits)
        if lowest < FLOAT32_MIN_EXPONENT or highest > FLOAT32_MAX_EXPONENT or self.mantissa_bits > 23:
            raise ValueError(
                f"format={self.name!r} has normal values from 2^{lowest} to 2^{highest} with {self.mantissa_bits} "
                f"mantissa bits, beyond float32 (2^{FLOAT32_MIN_EXPONENT} to 2^{FLOAT32_MAX_EXPONENT}, 23), in which "
                "it is simulated; use fewer bits or another bias"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> int:
        """Storage width including the sign."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value, which is also that of the subnormals; 0 for fixed point (E = 0)."""
        return 1 - self.bias if self.exponent_bits else 0

    @property
    def max_index(self) -> int:
        """Index of the largest finite value; indices 0..max_index are the finite magnitudes in order."""
        return 2 ** (self.exponent_bits + self.mantissa_bits) - 1 - self.reserved_codes

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self.value(self.max_index)

    @property
    def min_normal(self) -> float | None:
        """Smallest normal value; None for fixed point, which has no normal values."""
        return 2.0**self.min_exponent if self.exponent_bits else None

    @property
    def min_subnormal(self) -> float:
        """Smallest positive value; for M = 0, which has no subnormals, the smallest normal one."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def has_subnormals(self) -> bool:
        return self.mantissa_bits > 0

    @property
    def has_nan(self) -> bool:
        return self.reserved_codes > int(self.has_inf)

    @property
    def binades(self) -> float:
        """log2(max / min_subnormal): how many octaves the format spans."""
        return math.log2(self.max) - (self.min_exponent - self.mantissa_bits)

    def value(self, index: int) -> float:
        """Magnitude with that index; exact in float32."""
        field, fraction = divmod(index, 2**self.mantissa_bits)
        if field == 0 or self.exponent_bits == 0:
            return index * 2.0 ** (self.min_exponent - self.mantissa_bits)
        return (1 + fraction / 2**self.mantissa_bits) * 2.0 ** (field - 1 + self.min_exponent)

    def magnitudes(self) -> list[float]:
        """All finite non-negative values in rising order; position = index.  For formats of at most 16 bits."""
        if self.bits > 16:
            raise ValueError(f"format={self.name!r} has 2^{self.bits} values; listing is for at most 16 bits")
        return [self.value(index) for index in range(self.max_index + 1)]

    def ulp(self, x: float) -> float:
        """Distance between the grid values around x: 2^(max(floor(log2 |x|), min_exponent) - M)."""
        exponent = self.min_exponent if x == 0 else max(math.frexp(x)[1] - 1, self.min_exponent)
        return 2.0 ** (exponent - self.mantissa_bits)


def _split(exponent_bits: int, mantissa_bits: int, bias: int | None = None) -> NumberFormat:
    """`E<e>M<m>` with every code finite; bias 2^(E-1) - 1 unless given.

    With E = 8 and that bias the top exponent is reserved for inf and NaN, as in BF16: float32 has no 2^128.
    """
    default_bias = 2 ** (exponent_bits - 1) - 1 if exponent_bits else 0
    name = f"E{exponent_bits}M{mantissa_bits}" + ("" if bias is None or bias == default_bias else f"b{bias}")
    ieee = exponent_bits == 8 and bias in (None, default_bias)
    return NumberFormat(
        name,
        exponent_bits,
        mantissa_bits,
        default_bias if bias is None else bias,
        reserved_codes=2**mantissa_bits if ieee else 0,
        has_inf=ieee,
    )


FORMATS: Mapping[str, NumberFormat] = {
    fmt.name: fmt
    for fmt in (
        _split(0, 7),
        _split(1, 6),
        _split(2, 5),
        _split(3, 4),
        # OCP OFP8 v1.0, table 1: the top code of each sign is NaN, no infinity.
        NumberFormat("E4M3", 4, 3, bias=7, reserved_codes=1),
        # OCP OFP8 v1.0, table 1: IEEE-like, inf and three NaNs; saturating conversion is our default.
        NumberFormat("E5M2", 5, 2, bias=15, reserved_codes=4, has_inf=True),
        _split(6, 1),
        _split(7, 0),
        NumberFormat("BF16", 8, 7, bias=127, reserved_codes=2**7, has_inf=True, overflow="inf"),
        NumberFormat("FP16", 5, 10, bias=15, reserved_codes=2**10, has_inf=True, overflow="inf"),
        NumberFormat("FP32", 8, 23, bias=127, reserved_codes=2**23, has_inf=True, overflow="inf"),
    )
}

BASELINE_FORMAT = "BF16"

# Where an emergency shift (STAB-06) goes from a format that fails; E5M2 has nowhere to go.
FALLBACKS: Mapping[str, str] = {
    "E7M0": "E5M2",
    "E6M1": "E5M2",
    "E4M3": "E5M2",
    "E1M6": "E3M4",
    "E0M7": "E3M4",
    "E2M5": "E3M4",
    "E3M4": "E5M2",
}

_SPLIT_NAME = re.compile(r"E(\d{1,2})M(\d{1,2})(?:b(-?\d{1,3}))?", re.ASCII)


def find_format(name: str) -> NumberFormat:
    """The format of that name: a registered one, or `E<e>M<m>[b<bias>]` with E + M from 1 to 15, all codes finite.

    Raises ValueError naming the known formats.
    """
    if name in FORMATS:
        return FORMATS[name]
    match = _SPLIT_NAME.fullmatch(name)
    if match is None:
        known = f"{', '.join(FORMATS)}, or E<e>M<m>[b<bias>] such as E3M2 or E4M3b11"
        raise ValueError(f"format={shown(name)}; known: {known}{did_you_mean(name, FORMATS)}")
    exponent_bits, mantissa_bits = int(match[1]), int(match[2])
    if not 1 <= exponent_bits + mantissa_bits <= 15:
        raise ValueError(f"format={shown(name)}: E + M is {exponent_bits + mantissa_bits}, must be from 1 to 15")
    fmt = _split(exponent_bits, mantissa_bits, None if match[3] is None else int(match[3]))
    return FORMATS.get(fmt.name, fmt)  # E4M3b7 is E4M3, reserved code and all


def equal_up_to_scale(formats: Mapping[str, NumberFormat]) -> Iterator[tuple[str, str, float]]:
    """Pairs (a, b, factor) whose grids satisfy grid(b) = factor * grid(a): under max-abs scaling they round alike."""
    small = [fmt for fmt in formats.values() if fmt.bits <= 16]
    for position, first in enumerate(small):
        for second in small[position + 1 :]:
            if first.max_index != second.max_index:
                continue
            factor = second.max / first.max
            if all(second.value(i) == factor * first.value(i) for i in range(first.max_index + 1)):
                yield first.name, second.name, factor
