"""Numbers and tables as text, for the comparison and the reports: one way to write a value everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

ABSENT = "–"


def number(value: float | None, digits: int = 4) -> str:
    """A value with `digits` significant digits; NaN and inf as words; a dash for None."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == int(value) and abs(value) < 10 ** max(digits, 6):
        return str(int(value))
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if 0 < int(exponent) < 7:
        return f"{value:.0f}"
    return f"{mantissa}e{int(exponent)}"


def difference(value: float, unit: str, decimals: int = 4) -> str:
    """A difference of losses with its sign: `+0.1265` in nats, `-1.27e-9` in a unit whose size says nothing."""
    if not math.isfinite(value) or unit == "nats":
        return f"{value:+.{decimals}f}" if math.isfinite(value) else number(value)
    return f"{'-' if value < 0 else '+'}{number(abs(value), 3)}"


def interval_text(low: float | None, high: float | None, unit: str, decimals: int = 4) -> str:
    """` [+0.0412, +0.0601]`, to follow a difference; "" without an interval."""
    if low is None or high is None:
        return ""
    return f" [{difference(low, unit, decimals)}, {difference(high, unit, decimals)}]"


def binary(value: float | None) -> str:
    """A value of a format: `448`, or with a power of two, `2^64`, `1.5 x 2^32`, where digits would be many."""
    if not value or not math.isfinite(value):
        return number(value)
    if 0.125 <= abs(value) < 10**6 and float(f"{value:.8g}") == value:
        return number(value, 8)
    fraction, exponent = math.frexp(value)
    mantissa, exponent = fraction * 2, exponent - 1
    sign = "-" if mantissa < 0 else ""
    return f"{sign}2^{exponent}" if abs(mantissa) == 1 else f"{number(mantissa, 6)} x 2^{exponent}"


def duration(seconds: float | None) -> str:
    """Seconds as `48 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 59.95:  # 59.95 and more would be rounded to "60 s"
        return f"{number(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A markdown table; `align` has one of `l`, `r` per column (default: first left, others right)."""
    align = align or "l" + "r" * (len(head) - 1)
    marks = ["---:" if side == "r" else "---" for side in align]
    lines = [head, marks, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shares_text(shares: Mapping[str, float]) -> str:
    """`E4M3 66.7%, BF16 33.3%`"""
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
