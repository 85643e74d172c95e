"""Figures of curves.  The values come from `altgrad.show.drawn_curves`; this module decides only how they look.

Plotly traces are built as plain dicts, because Plotly's validation of 60 lines, property by property, takes longer than
everything else on the page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.compare import Row
from altgrad.metrics import described
from altgrad.show.drawn_curves import AXES, Line, View, log_scale, scale
from altgrad.show.palette import curve_dash, curve_marker, format_colour
from altgrad.show.seed_bands import Band
from altgrad.text.foreign_text import as_label
from dashboard.figures.colours import with_alpha
from dashboard.figures.curve_marks import beyond, ends_and_beginnings, last_finite, legend_names, non_finite_shapes

CONFIG: dict[str, Any] = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
_HEIGHT, _LEGEND_ROW, _MOST_HEIGHT = 520, 27, 1000
_LABEL_WIDTH = 32
_BELOW = 8  # entries of a legend that stands below the chart
_FEW_STEPS = 8


def curves_figure(
    lines: Sequence[Line], view: View, log_x: bool = False, log_y: bool = False, with_raw: bool = True
) -> go.Figure:
    """One chart with all lines: raw values faint under smoothed ones, NaN and inf shaded, deaths and branches marked.

    with_raw: whether to draw the raw values under smoothed ones.
    """
    limits = _limits(lines, log_y)
    variants = list(dict.fromkeys(line.row.treatment for line in lines))
    names, named = legend_names(lines), set[str]()
    traces: list[dict[str, Any]] = []
    for one in lines:
        own = {"legendgroup": names[one.row.group], "showlegend": one.row.group not in named}
        traces += _line_traces(one, own, variants, with_raw)
        named.add(one.row.group)
    shapes: list[dict[str, Any]] = []
    for one in lines:
        shapes += non_finite_shapes(one)
    traces += last_finite(lines)
    if limits is not None:
        traces += beyond(lines, limits)
    traces += ends_and_beginnings(lines, limits)
    return _figure(traces, shapes, view, limits, log_x, log_y)


def put_behind(figure: go.Figure, baseline: Line) -> None:
    """Draw the line of a run's BF16 run behind its curve, and widen the y-axis for it; not for a logarithmic axis."""
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": baseline.x_smoothed,
        "y": _finite_or_gap(baseline.smoothed.values),
        "line": _stroke(baseline.row) | {"width": 1.2},
        "opacity": 0.7,
        "name": "BF16, same seed",
        "hovertemplate": f"%{{y:.4g}} at %{{x}}<extra>{as_label(baseline.row.run)}</extra>",
    }
    figure.add_trace(trace)
    figure.data = (figure.data[-1], *figure.data[:-1])
    limits, shown = scale([baseline]), figure.layout.yaxis.range
    if limits is not None and shown is not None:
        low, high = min(limits[0], shown[0]), max(limits[1], shown[1])
        figure.layout.yaxis.range = [low, high + 0.05 * (high - low)]


def bands_figure(bands: Sequence[Band], lines: Sequence[Line], view: View, log_x: bool, log_y: bool) -> go.Figure:
    """The mean over seeds of each group in its band, and a cross where a seed died; the legend has their number."""
    limits, names = _limits(lines, log_y), legend_names(lines)
    traces: list[dict[str, Any]] = []
    for band in bands:
        colour = format_colour(band.row.format)
        ends = " [%{customdata[0]:.4g}, %{customdata[1]:.4g}]" if np.isfinite(band.low).any() else ""
        for low, x, high in _stretches(band):
            if log_y and limits is not None:
                low = np.maximum(low, limits[0])  # a logarithmic axis has no place for what is below 0
            traces.append(
                {
                    "type": "scatter",
                    "x": np.concatenate([x, x[::-1]]),
                    "y": np.concatenate([high, low[::-1]]),
                    "mode": "lines",
                    "fill": "toself",
                    "fillcolor": with_alpha(colour, 0.15),
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": names[band.row.group],
                    "meta": as_label(f"{band.row.group_label}, band"),
                }
            )
        mean = {
            "type": "scatter",
            "mode": "lines",
            "x": band.x,
            "y": band.mean,
            "customdata": np.stack([band.low, band.high], axis=1),
            "line": _stroke(band.row),
            "name": in_lines(f"{band.row.group_label} (n = {band.n})"),
            "legendgroup": names[band.row.group],
            "hovertemplate": f"%{{y:.4g}}{ends} at %{{x}}<extra>%{{fullData.name}}</extra>",
        }
        traces.append(mean)
    return _figure(traces + ends_and_beginnings(lines, limits), [], view, limits, log_x, log_y)


def _stretches(band: Band) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(low, x, high) of each stretch of a band without NaN."""
    finite = np.concatenate([[False], np.isfinite(band.low) & np.isfinite(band.high), [False]])
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield band.low[start:stop], band.x[start:stop], band.high[start:stop]


def in_lines(label: str) -> str:
    """A label for a legend or an axis, broken into lines of at most 32 characters to save width for the chart."""
    return "<br>".join(as_label(line) for line in textwrap.wrap(label, _LABEL_WIDTH, break_on_hyphens=False))


def _stroke(row: Row) -> dict[str, Any]:
    return {"color": format_colour(row.format), "dash": curve_dash(row.format, row.intervention), "width": 1.8}


def _line_traces(one: Line, in_legend: dict[str, Any], variants: list[str], with_raw: bool) -> list[dict[str, Any]]:
    marker = curve_marker(one.row.format, one.row.treatment, variants)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": one.x_smoothed,
        "y": _finite_or_gap(one.smoothed.values),
        "line": _stroke(one.row),
        "name": in_lines(one.row.group_label),
        "meta": as_label(one.row.run),
        "hovertemplate": f"%{{y:.4g}} at %{{x}}<extra>{as_label(one.row.run)}</extra>",
        **in_legend,
    }
    if len(one.smoothed.steps) == 1 or marker:
        every = max(len(one.smoothed.steps) // 8, 1)
        size = np.where(np.arange(len(one.smoothed.steps)) % every == 0, 8, 0)
        trace |= {"mode": "lines+markers", "marker": {"symbol": f"{marker}-open" if marker else "circle", "size": size}}
    if one.raw is one.smoothed or not with_raw:
        return [trace]
    faint = trace | {
        "x": one.x_raw,
        "y": _finite_or_gap(one.raw.values),
        "line": _stroke(one.row) | {"width": 0.8},
        "opacity": 0.25,
        "showlegend": False,
        "hoverinfo": "skip",
        "mode": "lines",
        "meta": as_label(f"{one.row.run}, not smoothed"),
    }
    del faint["hovertemplate"]
    return [faint, trace]


def _finite_or_gap(values: np.ndarray) -> np.ndarray:
    """The values with inf replaced by NaN: both leave a gap in the line, and inf would extend the axis."""
    return np.where(np.isfinite(values), values, np.nan)


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
    entries = sum(t.get("showlegend", True) for t in traces)
    legend: dict[str, Any] = {"groupclick": "togglegroup", "itemsizing": "constant"}
    if entries <= _BELOW:  # beside a chart on a phone they would take half of its width
        legend |= {"orientation": "h", "y": -0.15, "yanchor": "top"}
    layout = {
        "height": min(max(_HEIGHT, 110 + _LEGEND_ROW * entries), _MOST_HEIGHT),
        "margin": {"l": 10, "r": 10, "t": 30, "b": 10},
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
        "legend": legend,
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


def _few_steps(traces: list[dict[str, Any]]) -> bool:
    """Whether the axis has so few steps that Plotly would put ticks between them."""
    steps = np.concatenate([np.asarray(trace["x"], np.float64) for trace in traces] or [np.empty(0)])
    return len(steps) > 0 and float(np.ptp(steps)) < _FEW_STEPS
