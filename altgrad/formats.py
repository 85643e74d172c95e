"""Number formats as data: exponent bits, mantissa bits, bias, and the name of a rule for special codes.

Everything else (range, ULP, grid, value of each code) is derived, so that a format cannot contradict itself and one
rounding kernel serves all.  The *index* of a magnitude is its code without the sign bit: neighbouring grid values have
neighbouring indices.  No torch here: the dashboard imports this module too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from altgrad.format_names import REFUSED, SYNONYMS
from altgrad.text.error_hints import did_you_mean, shown

Overflow = Literal["saturate", "inf"]
# Which codes are not finite numbers, and whether there is a negative zero:
#   finite           none; negative zero
#   ieee             the top exponent field: infinity, then NaN; negative zero (IEEE 754)
#   fn               the top code of each sign is NaN; negative zero (OCP OFP8 v1.0, E4M3)
#   fnuz             the code of negative zero is NaN, all others are finite (ml_dtypes "fnuz"; P3109 "finite")
#   extended         the code of negative zero is NaN, the top code of each sign infinity (P3109 "extended")
#   twos_complement  integers: none, no negative zero, and one more value below zero than above
Specials = Literal["finite", "ieee", "fn", "fnuz", "extended", "twos_complement"]

FLOAT32_MIN_EXPONENT, FLOAT32_MAX_EXPONENT = -126, 127  # of its normal values


@dataclass(frozen=True)
class NumberFormat:
    """A signed binary format whose values are a finite subset of float32.

    `overflow`: a finite value beyond `max` becomes the largest finite value ("saturate") or infinity ("inf").
    `scaled`: tensors are scaled into the format's range, unless a config switches scaling off altogether.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = 0
    specials: Specials = "finite"
    overflow: Overflow = "saturate"
    scaled: bool = True

    def __post_init__(self) -> None:
        if self.exponent_bits < 0 or self.mantissa_bits < 0 or not 1 <= self.exponent_bits + self.mantissa_bits <= 31:
            raise ValueError(f"format={self.name!r}: E and M must be >= 0 and E + M from 1 to 31")
        if self.exponent_bits == 0 and self.bias != 0:
            raise ValueError(f"format={self.name!r}: without exponent bits there is no bias; leave it out")
        if (self.specials == "twos_complement") > (self.exponent_bits == 0):
            raise ValueError(f"format={self.name!r}: two's complement is for integers, which have no exponent bits")
        if self.max_index < 1:
            raise ValueError(f"format={self.name!r} has no finite value besides 0 with specials={self.specials!r}")
        if self.scaled and self.exponent_bits >= 8:
            raise ValueError(
                f"format={self.name!r} has float32's exponent range, in which no scale helps; scaled=False"
            )
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
        """Exponent of the smallest normal value, which is also that of the subnormals.

        Without exponent bits it is chosen so that the step is 2^-M (sign-magnitude fixed point) or 1 (integers).
        """
        if self.exponent_bits:
            return 1 - self.bias
        return self.mantissa_bits if self.specials == "twos_complement" else 0

    @property
    def reserved_codes(self) -> int:
        """Number of codes, at the top of each sign, that are not finite numbers."""
        if self.specials == "ieee":
            return int(2**self.mantissa_bits)
        return int(self.specials in ("fn", "extended"))

    @property
    def has_inf(self) -> bool:
        """Whether some code is an infinity."""
        return self.specials in ("ieee", "extended")

    @property
    def has_nan(self) -> bool:
        """Whether some code is NaN."""
        return self.specials in ("fn", "fnuz", "extended") or self.reserved_codes > 1

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code of its own."""
        return self.specials in ("finite", "ieee", "fn")

    @property
    def max_index(self) -> int:
        """Index of the largest finite value; indices 0..max_index are the finite magnitudes in order."""
        return 2 ** (self.exponent_bits + self.mantissa_bits) - 1 - self.reserved_codes

    @property
    def value_count(self) -> int:
        """Number of finite values; the two zeros count as one."""
        return 2 * self.max_index + 1 + (self.specials == "twos_complement")

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self.value(self.max_index)

    @property
    def lowest(self) -> float:
        """Lowest finite value: -max, or for two's complement one step below."""
        return -self.value(self.max_index + (self.specials == "twos_complement"))

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
        """Whether there are values between zero and the smallest normal one: for M > 0."""
        return self.mantissa_bits > 0

    @property
    def binades(self) -> float:
        """log2(max / min_subnormal): the number of octaves that the format spans."""
        return math.log2(self.max) - (self.min_exponent - self.mantissa_bits)

    def value(self, index: int) -> float:
        """Magnitude with this index, exact in float32: for E4M3 index 56 (field 7, fraction 0) is 1.0."""
        field, fraction = divmod(index, 2**self.mantissa_bits)
        if field == 0 or self.exponent_bits == 0:
            return index * 2.0 ** (self.min_exponent - self.mantissa_bits)
        return (1 + fraction / 2**self.mantissa_bits) * 2.0 ** (field - 1 + self.min_exponent)

    def decode(self, code: int) -> float:
        """Value of a code from 0 to 2^bits - 1, its sign in the highest bit: finite, infinite or NaN."""
        negative, index = divmod(code, 2 ** (self.bits - 1))
        if negative and self.specials == "twos_complement":
            return -self.value(2 ** (self.bits - 1) - index)
        if negative and index == 0 and not self.has_negative_zero:
            return math.nan
        beyond = index - self.max_index
        magnitude = self.value(index) if beyond <= 0 else math.inf if beyond == 1 and self.has_inf else math.nan
        return -magnitude if negative else magnitude

    @property
    def nan_code(self) -> int | None:
        """Code, without sign, of the NaN that a conversion returns (IEEE: the quiet one); None if there is no NaN."""
        if not self.has_nan:
            return None
        if not self.has_negative_zero:
            return int(2 ** (self.bits - 1))
        return self.max_index + (1 if self.specials == "fn" else 1 + 2 ** (self.mantissa_bits - 1))

    def magnitudes(self) -> list[float]:
        """All finite non-negative values in ascending order; position = index.

        Raises ValueError for formats of more than 16 bits.
        """
        if self.bits > 16:
            raise ValueError(f"format={self.name!r} has 2^{self.bits} values; listing is for at most 16 bits")
        return [self.value(index) for index in range(self.max_index + 1)]

    def ulp(self, x: float) -> float:
        """Distance between the grid values around x: 2^(max(floor(log2 |x|), min_exponent) - M)."""
        exponent = self.min_exponent if x == 0 else max(math.frexp(x)[1] - 1, self.min_exponent)
        return 2.0 ** (exponent - self.mantissa_bits)


def _split(exponent_bits: int, mantissa_bits: int, bias: int | None = None) -> NumberFormat:
    """`E<e>M<m>` with every code finite; bias 2^(E-1) - 1 unless given.

    With E = 8 and the default bias the top exponent is reserved for inf and NaN, as in BF16: float32 has no 2^128.
    """
    default = 2 ** (exponent_bits - 1) - 1 if exponent_bits else 0
    bias = default if bias is None else bias
    specials: Specials = "ieee" if exponent_bits == 8 and bias == default else "finite"
    name = _split_name(exponent_bits, mantissa_bits, bias)
    return NumberFormat(name, exponent_bits, mantissa_bits, bias, specials, scaled=exponent_bits < 8)


def _split_name(exponent_bits: int, mantissa_bits: int, bias: int | None) -> str:
    default = 2 ** (exponent_bits - 1) - 1 if exponent_bits else 0
    return f"E{exponent_bits}M{mantissa_bits}" + ("" if bias is None or bias == default else f"b{bias}")


def _reference(name: str, exponent_bits: int, mantissa_bits: int) -> NumberFormat:
    bias = 2 ** (exponent_bits - 1) - 1
    return NumberFormat(name, exponent_bits, mantissa_bits, bias, "ieee", overflow="inf", scaled=False)


def _p3109(precision: int, domain: Literal["e", "f"]) -> NumberFormat:
    """IEEE P3109 (interim report 3.x), K = 8, signed, P bits of significand; extended (with infinities) or finite.

    Conversions saturate here, as for all formats of 8 bits; the draft leaves that to the operation.
    """
    specials: Specials = "extended" if domain == "e" else "fnuz"
    return NumberFormat(f"binary8p{precision}s{domain}", 8 - precision, precision - 1, 2 ** (7 - precision), specials)


# All registered formats, in the groups in which they are shown.
GROUPS: Mapping[str, tuple[NumberFormat, ...]] = {
    "8 bits, every split": (
        _split(0, 7),
        _split(1, 6),
        _split(2, 5),
        _split(3, 4),
        NumberFormat("E4M3", 4, 3, 7, "fn"),  # OCP OFP8 v1.0, table 1
        NumberFormat("E5M2", 5, 2, 15, "ieee"),  # OCP OFP8 v1.0, table 1; saturating conversion is our default
        _split(6, 1),
        _split(7, 0),
    ),
    "references": (
        _reference("BF16", 8, 7),
        _reference("FP16", 5, 10),
        _reference("TF32", 8, 10),
        _reference("FP32", 8, 23),
    ),
    "OCP MX v1.0, FP6 and FP4": (_split(3, 2), _split(2, 3), _split(2, 1)),
    "8 bits as in ml_dtypes": (
        NumberFormat("float8_e4m3fnuz", 4, 3, 8, "fnuz"),
        NumberFormat("float8_e5m2fnuz", 5, 2, 16, "fnuz"),
        NumberFormat("float8_e4m3b11fnuz", 4, 3, 11, "fnuz"),
        NumberFormat("float8_e4m3", 4, 3, 7, "ieee"),
        NumberFormat("float8_e3m4", 3, 4, 3, "ieee"),
    ),
    "IEEE P3109, extended": tuple(_p3109(precision, "e") for precision in range(1, 8)),
    "IEEE P3109, finite": tuple(_p3109(precision, "f") for precision in range(1, 8)),
    "integers, two's complement": (
        NumberFormat("INT8", 0, 7, specials="twos_complement"),
        NumberFormat("INT4", 0, 3, specials="twos_complement"),
    ),
}
FORMATS: Mapping[str, NumberFormat] = {fmt.name: fmt for group in GROUPS.values() for fmt in group}
SPLITS = GROUPS["8 bits, every split"]  # the formats that the default sweep compares

BASELINE_FORMAT = "BF16"

_SPLIT_NAME = re.compile(r"E(\d{1,2})M(\d{1,2})(?:b(-?\d{1,3}))?", re.ASCII)


def find_format(name: str) -> NumberFormat:
    """The format of that name: a registered one, or `E<e>M<m>[b<bias>]` with E + M from 1 to 15, all codes finite.

    A published name gives the published format (E5M10 is FP16) or is refused.  Raises ValueError that names the
    accepted spellings.
    """
    match = _SPLIT_NAME.fullmatch(name)
    numbers = match and (int(match[1]), int(match[2]), None if match[3] is None else int(match[3]))
    usual = _split_name(*numbers) if numbers else name  # E4M3b7 is E4M3, with its reserved code
    usual = SYNONYMS.get(usual, usual)
    if usual in FORMATS:
        return FORMATS[usual]
    if usual in REFUSED:
        raise ValueError(f"format={shown(name)} {REFUSED[usual]}")
    if numbers is None:
        usual_ones = ", ".join(fmt.name for fmt in (*SPLITS, *GROUPS["references"]))
        known = f"known: {usual_ones}, E<e>M<m>[b<bias>] such as E3M3 or E4M3b11, and what `altgrad formats` lists"
        raise ValueError(f"format={shown(name)}; {known}{did_you_mean(name, (*FORMATS, *SYNONYMS))}")
    if not 1 <= numbers[0] + numbers[1] <= 15:
        raise ValueError(f"format={shown(name)}: E + M is {numbers[0] + numbers[1]}, must be from 1 to 15")
    return _split(*numbers)


@dataclass(frozen=True)
class FormatInfo:
    """The fields of numpy.finfo, for a format; None for a quantity that the format does not have."""

    name: str
    bits: int
    max: float
    min: float  # lowest finite value
    smallest_normal: float | None
    smallest_subnormal: float | None
    eps: float | None  # from 1 to the next larger value
    nexp: int
    nmant: int
    has_inf: bool
    has_nan: bool
    has_negative_zero: bool
    has_subnormals: bool
    value_count: int
    overflow: Overflow
    scaled: bool


def finfo(name_or_format: str | NumberFormat) -> FormatInfo:
    """The numbers that describe a format, under the names of numpy.finfo.  Raises ValueError as `find_format`."""
    fmt = find_format(name_or_format) if isinstance(name_or_format, str) else name_or_format
    eps = fmt.ulp(1.0)
    same = ("name", "bits", "max", "has_inf", "has_nan", "has_negative_zero", "has_subnormals", "value_count")
    return FormatInfo(
        **{name: getattr(fmt, name) for name in (*same, "overflow", "scaled")},
        min=fmt.lowest,
        smallest_normal=fmt.min_normal,
        smallest_subnormal=fmt.min_subnormal if fmt.has_subnormals else None,
        eps=eps if fmt.min_subnormal <= 1 and 1 + eps <= fmt.max else None,
        nexp=fmt.exponent_bits,
        nmant=fmt.mantissa_bits,
    )
