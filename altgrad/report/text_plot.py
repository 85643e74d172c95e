"""A loss curve as plain text, for a report that is read in a terminal, an editor or a pull request.

A braille character has 2 x 4 dots, so 72 columns show 144 min/max buckets.  Values that the scale cannot show (NaN,
inf, values far above the rest) are marked above and below the plot instead of being left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from altgrad.results.reading.curves import Curve, non_finite_spans
from altgrad.text.number_text import number

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode 2800: [row][column] of a cell
_EMPTY = 0x2800


def plot(curve: Curve, marks: Mapping[int, str], *, label: str, width: int = 72, height: int = 14) -> str:
    """The curve over steps as text of `width` x `height` characters plus axes; `marks`: step -> its label."""
    if not len(curve.steps):
        return f"{label}: not measured"
    first, last = int(curve.steps[0]), max(int(curve.steps[-1]), *marks, int(curve.steps[0]) + 1)
    low, high = _scale(curve.finite().values)
    columns = 2 * width
    at = ((curve.steps - first) * (columns - 1) // (last - first)).astype(int)
    cells = _cells(curve, at, (low, high), width, height)
    ticks = {0: high, height // 2: high - (high - low) * (height // 2) / (height - 1), height - 1: low}
    margin = max(len(number(value)) for value in ticks.values())
    finite = np.isfinite(curve.values)
    above = sorted({int(column) // 2 for column in at[finite & (np.nan_to_num(curve.values) > high)]})
    broken = sorted({int(column) // 2 for column in at[~finite]})

    lines = [label]
    if above:
        lines.append(
            f"{'':{margin}}  {_row(above, '↑', width)}  above the scale, up to {number(curve.finite().values.max())}"
        )
    for index, row in enumerate(cells):
        tick = f"{number(ticks[index]):>{margin}} ┤" if index in ticks else f"{'':{margin}} │"
        lines.append(tick + "".join(chr(_EMPTY + cell) if cell else " " for cell in row).rstrip())
    lines.append(f"{'':{margin}} └{'─' * width}")
    steps = f"{first}{f'step {(first + last) // 2}':^{max(width - len(str(first)) - len(str(last)), 1)}}{last}"
    lines.append(f"{'':{margin}}  {steps}")
    if broken:
        spans = [f"{s.first}–{s.last}" if s.last > s.first else str(s.first) for s in non_finite_spans(*curve)]
        listed = ", ".join(spans[:4]) + (f" and {len(spans) - 4} more" if len(spans) > 4 else "")
        lines.append(f"{'':{margin}}  {_row(broken, '×', width)}  NaN or inf, steps {listed}")
    for step, word in sorted(marks.items()):
        column = min(max((step - first) * (columns - 1) // (last - first) // 2, 0), width - 1)
        lines.append(f"{'':{margin}}  {_row([column], '▲', width)}  {word}, step {step}")
    return "\n".join(line.rstrip() for line in lines)


def _scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Lowest and highest drawn value; a few values far above the others do not extend the scale."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.95))
    limit = usual + (usual - low)
    if high > limit > low:
        high = limit
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _cells(curve: Curve, at: NDArray[np.int_], scale: tuple[float, float], width: int, height: int) -> list[list[int]]:
    """The dot pattern of each character, in `height` rows of `width` cells.

    A dot column is a bar from the smallest to the largest value of its bucket, extended to touch the previous column.
    """
    low, high = scale
    cells = [[0] * width for _ in range(height)]
    previous: tuple[int, int] | None = None
    for column in range(2 * width):
        values = curve.values[at == column]
        finite = values[np.isfinite(values)]
        if not len(finite):
            previous = None if len(values) else previous
            continue
        rows = [
            round((high - min(value, high)) / (high - low) * (4 * height - 1)) for value in (finite.max(), finite.min())
        ]
        top, bottom = rows
        if previous is not None:
            top, bottom = min(top, previous[1]), max(bottom, previous[0])
        for row in range(top, bottom + 1):
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
        previous = (rows[0], rows[1])
    return cells


def _row(columns: Sequence[int], sign: str, width: int) -> str:
    marked = set(columns)
    return "".join(sign if column in marked else " " for column in range(width))
