"""The table of a measurement on a GPU, with what was expected beside what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Expected of an H100 before any device ran it: it copies 3.0 TB/s and multiplies 0.7 PFLOP/s, and a kernel is as fast
# as its bytes.  Rounding: bytes per value / 8, as `tests/cuda_code` counts them.  Steps, per block of the 50M model:
# 0.25 ms of GEMMs and attention, of which the GEMMs move 0.42 GB in BF16 and 0.44 GB here, and the other bytes of
# `bench.cuda_bytes`: BF16 0.25 + 0.75 / 3.0 = 0.50 ms, E4M3 0.25 + 0.95 / 3.0 = 0.57 ms, delayed
# 0.25 + 0.85 / 3.0 = 0.53 ms, mxfp8 0.25 + 1.20 / 3.0 = 0.65 ms.
EXPECTED = {
    "round nearest": 1.0,
    "round stochastic": 1.0,
    "round tensor": 1.5,
    "round row": 1.0,
    "round 1x32": 1.0,
    "round 1x32 first": 1.56,
    "50M E4M3": 1.13,
    "50M E4M3 delayed, counts": 1.06,
    "50M mxfp8": 1.3,
    "tiny, peak": 1.0,
    "50M, peak": 1.0,
    "350M, peak": 1.0,
    "largest difference of a loss": 0.0,
    "collectives that gave another number": 0.0,
}


def table(name: str, date: str, found: Mapping[str, Any]) -> str:
    """Markdown: a row for each number, and a line for each part that did not end well."""
    lines = [f"# {name}, {date}", "", "| part | what | measured | expected |", "| --- | --- | ---: | ---: |"]
    notes = []
    for part, result in found.items():
        for row in result["rows"]:
            expected = None if name == "CPU" else EXPECTED.get(row["what"])
            beside = "" if expected is None else f"{expected:g}"
            lines.append(
                f"| {part} | {row['what']} | {_shown(row['value'])} {row['unit']} | {beside} |".replace("  ", " ")
            )
        if result["note"]:
            notes.append(f"- {part}: {result['note']}")
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _shown(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
