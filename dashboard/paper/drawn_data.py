"""The drawn data of a figure as a table, and the table as LaTeX.

A row per drawn point, exactly as the chart has it: after smoothing, thinning and windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from altgrad.text.number_text import number
from dashboard.data.sweep_frame import frame_of
from dashboard.paper.figure_parts import Parts, each, plain

_FEW_ROWS = 40  # more rows do not fit on a page: the table may be broken
_ESCAPED = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "−": "$-$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "–": "--",
        "…": r"\ldots{}",
    }
)


def drawn_data(figure: go.Figure) -> pd.DataFrame:
    """`Series` and the axes' titles as columns, a row per point; a column of values for the cells of a heat map."""
    parts = Parts.of(figure)
    x_head, y_head = (_head(parts, place) for place in (0, 1))
    x_head, y_head = x_head or "x", y_head or "y"
    records: list[dict[str, Any]] = []
    for trace in parts.traces:
        records += (
            _cells(trace, x_head, y_head) if trace.get("type") == "heatmap" else _points(parts, trace, x_head, y_head)
        )
    frame = frame_of(records)
    return frame.dropna(axis="columns", how="all") if len(frame) else frame


def _head(parts: Parts, place: int) -> str:
    """The title of the axes of a direction, if they have the same."""
    titles = {parts.title(pair[place]) for pair in parts.axes}
    return titles.pop() if len(titles) == 1 else ""


def _points(parts: Parts, trace: Mapping[str, Any], x_head: str, y_head: str) -> Iterator[dict[str, Any]]:
    columns = {}
    for key, head in (("x", x_head), ("y", y_head)):
        values = list(trace[key])
        if key == "y" and trace.get("base") is not None:  # a bar that floats around the row it stands for
            values = [base + height / 2 for base, height in zip(each(trace["base"], len(values)), values, strict=True)]
        labels = parts.labels(trace.get(f"{key}axis", key))
        columns[head] = [_value(value, labels) for value in values]
    count = len(columns[x_head])
    texts = [plain(text or "") or None for text in each(trace.get("text"), count)]
    for x, y, text in zip(columns[x_head], columns[y_head], texts, strict=True):
        yield {"Series": parts.series(trace) or None, x_head: x, y_head: y, "Text": text}


def _cells(trace: Mapping[str, Any], x_head: str, y_head: str) -> Iterator[dict[str, Any]]:
    for y, row in zip(trace["y"], np.asarray(trace["z"], np.float64), strict=True):
        for x, z in zip(trace["x"], row, strict=True):
            yield {x_head: _value(x, {}), y_head: _value(y, {}), "Value": float(z)}


def _value(value: Any, labels: Mapping[float, str]) -> Any:
    if isinstance(value, str):
        return plain(value)
    if value is None:
        return None
    as_number = float(value)
    near = next((place for place in labels if abs(place - as_number) < 1e-9), None)
    if near is not None:
        return labels[near]
    return int(as_number) if as_number.is_integer() and abs(as_number) < 1e15 else as_number


def latex(frame: pd.DataFrame, caption: str) -> str:
    """A table of a document that loads `booktabs`, and `longtable` for more rows than a page has."""
    numeric = [_is_numeric(frame[name]) for name in frame.columns]
    columns = "".join("r" if right else "l" for right in numeric)
    head = " & ".join(as_latex(str(name)) for name in frame.columns) + r" \\"
    body = [" & ".join(_cell(value) for value in row) + r" \\" for row in frame.itertuples(index=False)]
    said = rf"\caption{{{as_latex(caption)}}}"
    if len(frame) > _FEW_ROWS:
        lines = [rf"\begin{{longtable}}{{{columns}}}", rf"{said} \\", r"\toprule", head, r"\midrule", r"\endhead"]
        lines += [r"\bottomrule", r"\endfoot", *body, r"\end{longtable}"]
    else:
        lines = [r"\begin{table}", r"\centering", said, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head]
        lines += [r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(["% \\usepackage{booktabs,longtable}", *lines, ""])


def as_latex(text: str) -> str:
    """Text as LaTeX prints it: no character of it is a command."""
    return " ".join(text.split()).translate(_ESCAPED)


def _is_numeric(column: pd.Series) -> bool:
    return all(isinstance(value, int | float) for value in column.dropna())


def _cell(value: Any) -> str:
    if value is None or value is pd.NA:
        return "--"
    if isinstance(value, str):
        return as_latex(value)
    return as_latex(number(float(value), 6))
