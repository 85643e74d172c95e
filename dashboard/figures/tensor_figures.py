"""Figures of a stored tensor: its distribution over a format's values, the rounding error, and a ranking of casts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from altgrad.format_fit import PER_BINADE, Weighted, grid, power_of_two_scale, rounded
from altgrad.formats import NumberFormat
from altgrad.show.palette import ALARM, NEUTRAL, format_colour
from altgrad.text.number_text import binary
from dashboard.data.cast_fits import Ranked
from dashboard.figures.colours import with_alpha
from dashboard.figures.curve_figures import in_lines

_LISTED_BITS = 8  # wider formats have too many values to draw one by one
_BESIDE = 2  # empty binades drawn on either side
_PER_ERROR = PER_BINADE // 10  # points of a binade over which an error is averaged


def tensor_scale(data: Weighted, fmt: NumberFormat, scaled: bool) -> float:
    """The power-of-two scale for the largest value that the histogram allows; 1 if it is not scaled."""
    return power_of_two_scale(float(data.magnitudes[data.weights > 0].max()), fmt) if scaled else 1.0


def tensor_figure(data: Weighted, fmt: NumberFormat, scaled: bool) -> go.Figure:
    """Above the shares of the values and of the noise by binade, over the format's values; below the relative error.

    The ranges in which values become zero or exceed the largest one are shaded.
    """
    scale, colour = tensor_scale(data, fmt, scaled), format_colour(fmt.name)
    x, weights = data.magnitudes, data.weights
    held = rounded(x / scale, fmt) * scale
    noise = weights * np.where(np.isfinite(held), (x - held) ** 2, 0.0)
    binades = np.log2(x.reshape(-1, PER_BINADE)[:, 0]).round().astype(int)
    shares = [part.reshape(-1, PER_BINADE).sum(axis=1) for part in (weights, noise / (noise.sum() or 1.0))]
    left, right = float(binades[0] - _BESIDE), float(binades[-1] + 1 + _BESIDE)
    edges = _edges(binades, shares[1])
    top = float(max(shares[0].max(), shares[1].max()))
    traces = [
        {
            "type": "bar",
            "x": binades + 0.5,
            "y": shares[0],
            "width": 0.96,
            "name": "share of the values",
            "marker": {"color": NEUTRAL},
            "hovertemplate": "%{y:.2%} of the values<extra>2^%{x}</extra>",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "x": edges[0],
            "y": edges[1],
            "name": f"share of the noise in {fmt.name}",
            "line": {"color": colour, "width": 2},
            "hovertemplate": "%{y:.2%} of the noise<extra></extra>",
        },
        _values(fmt, scale, left, right, -0.06 * top),
        _error(fmt, scale, left, right, colour),
    ]
    lost, beyond = np.log2(fmt.min_subnormal * scale / 2), np.log2(fmt.max * scale)
    layout = {
        "height": 460,
        "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
        "xaxis": {"title": {"text": "log2 of the value"}, "automargin": True, "range": [left, right], "anchor": "y2"},
        "yaxis": {"title": {"text": "Share"}, "automargin": True, "domain": [0.4, 1.0], "tickformat": ".0%",
                  "range": [-0.12 * top, 1.08 * top]},
        "yaxis2": {"title": {"text": "RMS error / value"}, "automargin": True, "domain": [0.0, 0.3],
                   "type": "log", "dtick": 1, "tickformat": "~g"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "shapes": [*_shaded(left, lost), *_shaded(beyond, right)],
        "annotations": [*_named("rounded to zero", left, lost, "left"), *_named("overflow", beyond, right, "right")],
    }  # fmt: skip
    return go.Figure({"data": traces, "layout": layout})


def _values(fmt: NumberFormat, scale: float, left: float, right: float, height: float) -> dict[str, Any]:
    """A mark for each value of the format between the binades, or for the smallest and the largest of a wide one."""
    is_listed = fmt.bits <= _LISTED_BITS
    values = (grid(fmt)[1:] if is_listed else np.array([fmt.min_subnormal, fmt.max])) * scale
    values = values[(values >= 2.0**left) & (values <= 2.0**right)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": np.log2(values),
        "y": np.full(len(values), height),
        "name": f"values of {fmt.name}" if is_listed else f"range of {fmt.name}",
        "marker": {"symbol": "line-ns-open", "size": 11, "color": format_colour(fmt.name), "line": {"width": 1}},
        "text": [binary(value) for value in values],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _edges(binades: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line of steps over the binades."""
    return np.repeat([*binades, binades[-1] + 1], 2)[1:-1].astype(float), np.repeat(shares, 2)


def _error(fmt: NumberFormat, scale: float, left: float, right: float, colour: str) -> dict[str, Any]:
    """The RMS of the relative error, over a tenth of a binade each, on an axis of its own."""
    within = np.log2(1 + (np.arange(PER_BINADE) + 0.5) / PER_BINADE)
    exponents = (np.arange(left, right)[:, None] + within).ravel()
    x = 2.0**exponents
    held = rounded(x / scale, fmt) * scale
    inside = (held > 0) & np.isfinite(held)
    squared = np.where(inside, (held / x - 1) ** 2, np.nan)
    whole = len(x) // _PER_ERROR * _PER_ERROR
    rms = np.sqrt(squared[:whole].reshape(-1, _PER_ERROR).mean(axis=1))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": exponents[:whole].reshape(-1, _PER_ERROR).mean(axis=1),
        "y": np.where(rms > 0, rms, np.nan),
        "yaxis": "y2",
        "name": f"error in {fmt.name}",
        "showlegend": False,
        "line": {"color": colour, "width": 1.5},
        "hovertemplate": "%{y:.2g} at 2^%{x:.1f}<extra></extra>",
    }


def _shaded(start: float, end: float) -> list[dict[str, Any]]:
    if end <= start:
        return []
    return [
        {"type": "rect", "x0": start, "x1": end, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
         "fillcolor": with_alpha(ALARM, 0.12), "line": {"width": 0}}
    ]  # fmt: skip


def _named(text: str, start: float, end: float, side: Literal["left", "right"]) -> list[dict[str, Any]]:
    """The name of a shaded end, from the border of the chart inwards, where a narrow chart has room for it."""
    if end - start < 1:
        return []
    border = start if side == "left" else end
    place = {"x": border, "xanchor": side, "y": 1, "yref": "paper", "yanchor": "top", "showarrow": False}
    return [{"text": text, "font": {"size": 11}, **place}]


def ranking_figure(places: Sequence[Ranked]) -> go.Figure:
    """A bar per format and per cast of recipes, the highest SQNR on top; recipes are hatched."""
    names = [in_lines(place.label) for place in places]
    values = [place.fit.sqnr_db if np.isfinite(place.fit.sqnr_db) else None for place in places]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": names,
        "text": ["exact" if value is None else f"{value:.1f}" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": [str(place.cast) for place in places],
        "hovertemplate": "%{x:.1f} dB<br>%{customdata}<extra>%{y}</extra>",
        "marker": {
            "color": [format_colour(place.cast.format) for place in places],
            "pattern": {
                "shape": ["/" if place.recipes else "" for place in places],
                "fgcolor": "rgba(0, 0, 0, 0.28)",
                "fillmode": "overlay",
                "size": 8,
            },
        },
    }
    rows = sum(name.count("<br>") + 1 for name in names)
    layout = {
        "height": 90 + 22 * rows,
        "margin": {"l": 10, "r": 50, "t": 10, "b": 10},
        "xaxis": {"title": {"text": "SQNR (dB)"}, "automargin": True},
        "yaxis": {"title": {"text": "Format or recipes"}, "automargin": True, "autorange": "reversed"},
        "showlegend": False,
    }
    return go.Figure({"data": [bars], "layout": layout})
