"""Figures of curves.  The values come from `altgrad.show.drawn_curves`; this module decides only how they look.

Plotly traces are built as plain dicts, because Plotly's validation of 60 lines, property by property, takes longer than
everything else on the page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.compare import Row
from altgrad.events import Event, kind_of
from altgrad.metrics import described
from altgrad.show.drawn_curves import AXES, Band, Line, View, log_scale, off_scale, scale
from altgrad.show.palette import ALARM, NEUTRAL, curve_dash, curve_marker, event_colour, format_colour
from altgrad.text.foreign_text import as_label
from altgrad.text.number_text import number
from dashboard.figures.colours import with_alpha

CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
_HEIGHT, _LEGEND_ROW, _MOST_HEIGHT = 520, 27, 1000
_LABEL_WIDTH = 32
_FEW_STEPS = 8


def curves_figure(lines: Sequence[Line], view: View, log_x: bool = False, log_y: bool = False) -> go.Figure:
    """One chart with all lines: raw values faint under smoothed ones, NaN and inf shaded, off-scale values marked."""
    limits = _limits(lines, log_y)
    variants = list(dict.fromkeys(line.row.treatment for line in lines))
    named: set[str] = set()
    traces: list[dict[str, Any]] = []
    for one in lines:
        traces += _line_traces(one, one.row.group not in named, variants)
        named.add(one.row.group)
    shapes: list[dict[str, Any]] = []
    for one in lines:
        shapes += _span_shapes(one)
    traces += _last_finite(lines)
    if limits is not None:
        traces += _off_scale(lines, limits)
    return _figure(traces, shapes, view, limits, log_x, log_y)


def bands_figure(bands: Sequence[Band], lines: Sequence[Line], view: View, log_x: bool, log_y: bool) -> go.Figure:
    """The mean over seeds of each group, in a band from its lowest to its highest seed; the legend has their number."""
    traces: list[dict[str, Any]] = []
    for band in bands:
        colour = format_colour(band.row.format)
        finite = np.isfinite(band.low) & np.isfinite(band.high)
        outline = {
            "type": "scatter",
            "x": np.concatenate([band.x[finite], band.x[finite][::-1]]),
            "y": np.concatenate([band.high[finite], band.low[finite][::-1]]),
            "fill": "toself",
            "fillcolor": with_alpha(colour, 0.15),
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": band.row.group,
        }
        mean = {
            "type": "scatter",
            "mode": "lines",
            "x": band.x,
            "y": band.mean,
            "line": _stroke(band.row),
            "name": in_lines(f"{band.row.group_label} (n = {band.n})"),
            "legendgroup": band.row.group,
            "hovertemplate": "%{y:.4g} at %{x}<extra>%{fullData.name}</extra>",
        }
        traces += [outline, mean]
    return _figure(traces, [], view, _limits(lines, log_y), log_x, log_y)


def add_moments(figure: go.Figure, one: Line, events: Iterable[Event], verdict_step: int | None) -> None:
    """Draw a run's events on its curve, and its verdict as a vertical line."""
    by_kind: dict[str, list[int]] = {}
    for event in events:
        if kind_of(event.kind).on_curve:
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
                "text": ["; nothing finite was measured there" if height is None else "" for height in heights],
                "hovertemplate": f"{kind.label} at step %{{x}}%{{text}}<extra>{as_label(one.row.run)}</extra>",
            }
        )
    if verdict_step is not None:
        figure.add_shape(**vertical(one.x(verdict_step)))
        figure.add_annotation(
            x=one.x(verdict_step),
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text=as_label(str(one.row.collapse_rule)),
        )


def in_lines(label: str) -> str:
    """A label for a legend or an axis, broken into lines of at most 32 characters to save width for the chart."""
    return "<br>".join(as_label(line) for line in textwrap.wrap(label, _LABEL_WIDTH, break_on_hyphens=False))


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


def _stroke(row: Row) -> dict[str, Any]:
    return {"color": format_colour(row.format), "dash": curve_dash(row.format, row.intervention), "width": 1.8}


def _line_traces(one: Line, in_legend: bool, variants: list[str]) -> list[dict[str, Any]]:
    marker = curve_marker(one.row.format, one.row.treatment, variants)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": one.x_smoothed,
        "y": _finite_or_gap(one.smoothed.values),
        "line": _stroke(one.row),
        "name": in_lines(one.row.group_label),
        "legendgroup": one.row.group,
        "showlegend": in_legend,
        "hovertemplate": f"%{{y:.4g}} at %{{x}}<extra>{as_label(one.row.run)}</extra>",
    }
    if len(one.smoothed.steps) == 1 or marker:
        every = max(len(one.smoothed.steps) // 8, 1)
        size = np.where(np.arange(len(one.smoothed.steps)) % every == 0, 8, 0)
        trace |= {"mode": "lines+markers", "marker": {"symbol": f"{marker}-open" if marker else "circle", "size": size}}
    if one.raw is one.smoothed:
        return [trace]
    faint = trace | {
        "x": one.x_raw,
        "y": _finite_or_gap(one.raw.values),
        "line": _stroke(one.row) | {"width": 0.8},
        "opacity": 0.25,
        "showlegend": False,
        "hoverinfo": "skip",
        "mode": "lines",
    }
    del faint["hovertemplate"]
    return [faint, trace]


def _finite_or_gap(values: np.ndarray) -> np.ndarray:
    """The values with inf replaced by NaN: both leave a gap in the line, and inf would extend the axis."""
    return np.where(np.isfinite(values), values, np.nan)


def _span_shapes(one: Line) -> list[dict[str, Any]]:
    """A shaded stretch from the last finite value to the next one, at least half a step wide."""
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


def _last_finite(lines: Sequence[Line]) -> list[dict[str, Any]]:
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
            "marker": {"symbol": "x", "size": 11, "color": ALARM, "line": {"width": 1.5, "color": "#ffffff"}},
            "name": "last finite value before NaN or inf",
        }
    ]


def _off_scale(lines: Sequence[Line], limits: tuple[float, float]) -> list[dict[str, Any]]:
    traces = []
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
                }
            )
    return traces


def _figure(
    traces: list[dict[str, Any]],
    shapes: list[dict[str, Any]],
    view: View,
    limits: tuple[float, float] | None,
    log_x: bool,
    log_y: bool,
) -> go.Figure:
    y: dict[str, Any] = {"title": {"text": y_title(view)}, "automargin": True}
    if log_y:
        y |= {"type": "log"} if limits is None else {"type": "log", "range": np.log10(limits).tolist()}
    elif limits is not None:
        y["range"] = list(limits)
    x: dict[str, Any] = {"title": {"text": AXES[view.axis]}, "type": "log" if log_x else "linear", "automargin": True}
    if view.axis == "step" and not log_x and _few_steps(traces):
        x |= {"tick0": 0, "dtick": 1}  # no tick at step 59.5
    layout = {
        "height": min(max(_HEIGHT, 110 + _LEGEND_ROW * sum(t.get("showlegend", True) for t in traces)), _MOST_HEIGHT),
        "margin": {"l": 10, "r": 10, "t": 30, "b": 10},
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
        "legend": {"groupclick": "togglegroup", "itemsizing": "constant"},
        "shapes": shapes,
    }
    return go.Figure({"data": traces, "layout": layout}, skip_invalid=False, _validate=False)


def y_title(view: View) -> str:
    """The title of the y-axis, with its unit."""
    metric = described(view.metric)
    title = f"{metric.label}, difference to BF16" if view.difference else metric.label
    return f"{title} ({metric.unit})" if metric.unit else title


def _limits(lines: Sequence[Line], log_y: bool) -> tuple[float, float] | None:
    return log_scale(lines) if log_y else scale(lines)


def _bottom(figure: go.Figure) -> float | None:
    """The lowest value on the y-axis, for marks at steps where no line is drawn; None if Plotly chooses the range."""
    axis = figure.layout.yaxis
    if axis.range is None:
        return None
    return float(10 ** axis.range[0] if axis.type == "log" else axis.range[0])


def _few_steps(traces: list[dict[str, Any]]) -> bool:
    """Whether the axis has so few steps that Plotly would put ticks between them."""
    steps = np.concatenate([np.asarray(trace["x"], np.float64) for trace in traces] or [np.empty(0)])
    return len(steps) > 0 and float(np.ptp(steps)) < _FEW_STEPS
