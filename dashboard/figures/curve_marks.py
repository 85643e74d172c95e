"""Marks on and around curves: deaths, branches, NaN and inf, values off the scale, events, verdicts.

A mark is at a place where its line is drawn.  Only events at steps where nothing finite was measured are on the axis.
Traces that are hidden together have one `legendgroup`: lines with their own marks the name of their group, see
`legend_names`, and other marks the name of their kind after a dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.events import Event, kind_of
from altgrad.show.drawn_curves import Line, death, off_scale
from altgrad.show.palette import ALARM, NEUTRAL, event_colour, format_colour
from altgrad.text.foreign_text import as_label
from altgrad.text.number_text import number
from dashboard.figures.colours import with_alpha

Limits = tuple[float, float] | None


def legend_names(lines: Iterable[Line]) -> dict[str, str]:
    """`Row.group` -> the name of the group in a chart and in links: that of its first run."""
    names: dict[str, str] = {}
    for row in (one.row for one in lines):
        names[row.group] = min(names.get(row.group, row.run), row.run)
    return names


def ends_and_beginnings(lines: Sequence[Line], limits: Limits) -> list[dict[str, Any]]:
    """A cross where a run died and a dot where a branch begins, hidden and shown with their lines."""
    names = legend_names(lines)
    traces: list[dict[str, Any]] = []
    for one in lines:
        end = death(one)
        if end is not None:
            mark = {"symbol": "x", "size": 10, "color": ALARM, "line": {"width": 1.2, "color": "#ffffff"}}
            traces.append(_own_mark(names[one.row.group], one, end.step, _inside(end.value, limits), str(end), mark))
        steps, values = one.smoothed.finite()
        if one.branch is not None and len(steps) and one.is_in_window(one.branch[0]):
            said = f"branched from {as_label(one.branch[1])} at step {one.branch[0]}"
            mark = {"symbol": "circle", "size": 8, "color": format_colour(one.row.format)}
            traces.append(
                _own_mark(names[one.row.group], one, int(steps[0]), _inside(float(values[0]), limits), said, mark)
            )
    return traces


def _own_mark(name: str, one: Line, step: int, y: float, said: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [one.x(step)],
        "y": [y],
        "text": [f"{as_label(one.row.run)} {said}"],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
        "cliponaxis": False,
        "showlegend": False,
        "legendgroup": name,
    }


def _inside(value: float, limits: Limits) -> float:
    """The value, or the edge of the chart beyond which it lies."""
    return value if limits is None else float(np.clip(value, *limits))


def non_finite_shapes(one: Line) -> list[dict[str, Any]]:
    """A shaded stretch for each series of NaN or inf, half a step longer than it on both sides."""
    return [
        {
            "type": "rect",
            "x0": one.x(span.first - 0.5),
            "x1": one.x(span.last + 0.5),
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "fillcolor": with_alpha(ALARM, 0.12),
            "line": {"width": 0.6, "color": with_alpha(ALARM, 0.4)},
            "layer": "below",
        }
        for span in one.spans
    ]


def last_finite(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A ring round the last finite value before each series of NaN or inf."""
    marked = [(one, span) for one in lines for span in one.spans if span.finite_step is not None]
    if not marked:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [one.x(span.finite_step or 0) for one, span in marked],
            "y": [span.finite_value for _, span in marked],
            "text": [
                f"{as_label(one.row.run)}: {span.count} non-finite, steps {span.first}–{span.last}; last finite value "
                f"{number(span.finite_value)}"
                for one, span in marked
            ],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"symbol": "circle-open", "size": 13, "color": ALARM, "line": {"width": 1.5}},
            "name": "last finite value before NaN or inf",
            "legendgroup": ".last_finite",
        }
    ]


def beyond(lines: Sequence[Line], limits: tuple[float, float]) -> list[dict[str, Any]]:
    """Triangles at the edges of the chart where a raw line leaves it."""
    traces: list[dict[str, Any]] = []
    for side, symbol, y in ((0, "triangle-up", limits[1]), (1, "triangle-down", limits[0])):
        marked = [(one, step) for one in lines for step in off_scale(one, limits)[side]]
        if marked:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [one.x(step) for one, step in marked],
                    "y": [y] * len(marked),
                    "text": [as_label(one.row.run) for one, _ in marked],
                    "hovertemplate": "%{text} leaves the scale at %{x}<extra></extra>",
                    "marker": {
                        "symbol": symbol,
                        "size": 10,
                        "color": [format_colour(one.row.format) for one, _ in marked],
                        "line": {"width": 1, "color": NEUTRAL},
                    },
                    "cliponaxis": False,
                    "name": "off the scale",
                    "legendgroup": ".off_scale",
                    "showlegend": not traces,
                }
            )
    return traces


def add_moments(figure: go.Figure, one: Line, events: Iterable[Event], verdict_step: int | None) -> None:
    """Draw a run's events on its curve, and its verdict as a vertical line; both only inside the window."""
    by_kind: dict[str, list[int]] = {}
    for event in events:
        if kind_of(event.kind).on_curve and one.is_in_window(event.step):
            by_kind.setdefault(event.kind, []).append(event.step)
    for kind, steps in ((kind_of(name), steps) for name, steps in by_kind.items()):
        heights = [one.height(step) for step in steps]
        figure.add_trace(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [one.x(step) for step in steps],
                "y": [_bottom(figure) if height is None else height for height in heights],
                "cliponaxis": False,
                "marker": {"symbol": kind.symbol, "size": 8, "color": event_colour(kind, one.row.format)},
                "name": kind.label,
                "legendgroup": f".{kind.name}",
                "text": ["; nothing finite was measured there" if height is None else "" for height in heights],
                "hovertemplate": f"{kind.label} at step %{{x}}%{{text}}<extra>{as_label(one.row.run)}</extra>",
            }
        )
    if verdict_step is not None and one.is_in_window(verdict_step):
        figure.add_shape(**vertical(one.x(verdict_step)))
        figure.add_annotation(
            x=one.x(verdict_step),
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text=as_label(str(one.row.collapse_rule)),
        )


def vertical(x: float, colour: str = ALARM) -> dict[str, Any]:
    """A dashed vertical line through the whole height of the chart."""
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
    }


def _bottom(figure: go.Figure) -> float | None:
    """The lowest value on the y-axis, for marks at steps where no line is drawn; None if Plotly chooses the range."""
    axis = figure.layout.yaxis
    if axis.range is None:
        return None
    return float(10 ** axis.range[0] if axis.type == "log" else axis.range[0])
