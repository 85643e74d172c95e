"""How formats relate to each other: which safer one replaces a failing one, and which differ by a scale only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from altgrad.formats import NumberFormat

# The safer format by which an emergency shift replaces a failing one; the chains end at 5 exponent and 2
# mantissa bits.
FALLBACKS: Mapping[str, str] = {
    "E7M0": "E5M2",
    "E6M1": "E5M2",
    "E4M3": "E5M2",
    "E1M6": "E3M4",
    "E0M7": "E3M4",
    "E2M5": "E3M4",
    "E3M4": "E5M2",
    "E3M2": "E5M2",
    "E2M3": "E3M4",
    "E2M1": "E3M4",
    "float8_e4m3fnuz": "float8_e5m2fnuz",
    "float8_e4m3b11fnuz": "float8_e5m2fnuz",
    "float8_e4m3": "E5M2",
    "float8_e3m4": "E5M2",
    **{f"binary8p{p}s{domain}": f"binary8p3s{domain}" for p in (1, 2, 4, 5) for domain in "ef"},
    **{f"binary8p{p}s{domain}": f"binary8p5s{domain}" for p in (6, 7) for domain in "ef"},
    "INT8": "E3M4",
    "INT4": "E3M4",
}


def equal_up_to_scale(formats: Mapping[str, NumberFormat]) -> Iterator[tuple[str, str, float]]:
    """Pairs (a, b, factor) with grid(b) = factor * grid(a): under max-abs scaling both round to the same values.

    Their codes for zero and NaN may differ.  Formats of more than 16 bits are left out.
    """
    small = [fmt for fmt in formats.values() if fmt.bits <= 16]
    for position, first in enumerate(small):
        for second in small[position + 1 :]:
            if first.value_count != second.value_count or first.lowest * second.max != second.lowest * first.max:
                continue
            factor = second.max / first.max
            if all(second.value(i) == factor * first.value(i) for i in range(first.max_index + 1)):
                yield first.name, second.name, factor
