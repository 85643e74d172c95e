"""Figures and facts of the format explorer: ranges, grids, ULPs, signal to rounding noise, stored samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.format_fit import Fit, Weighted, fit, grid, rounded
from altgrad.format_relations import equal_up_to_scale
from altgrad.formats import NumberFormat
from altgrad.show.palette import NEUTRAL, format_colour
from altgrad.text.number_text import binary, number

_LISTED_BITS = 8  # wider formats have too many values to draw one by one


def facts(fmt: NumberFormat) -> dict[str, Any]:
    """The properties of a format as a table row."""
    return {
        "Format": fmt.name,
        "Bits": fmt.bits,
        "Exponent": fmt.exponent_bits,
        "Mantissa": fmt.mantissa_bits,
        "Bias": fmt.bias if fmt.exponent_bits else None,
        "Largest": binary(fmt.max),
        "Smallest normal": binary(fmt.min_normal),
        "Smallest": binary(fmt.min_subnormal),
        "Binades": round(fmt.binades, 1),
        "ULP at 1": binary(fmt.ulp(1.0)) if fmt.min_subnormal <= 1 <= fmt.max else "out of range",
        "Values": fmt.value_count,
        "Inf": "yes" if fmt.has_inf else "no",
        "NaN": "yes" if fmt.has_nan else "no",
        "Overflow": fmt.overflow,
    }


def equivalences(formats: Mapping[str, NumberFormat]) -> list[str]:
    """A sentence for each pair of formats whose values are equal up to a constant factor."""
    return [
        f"{second} is {first} times {number(factor)}: under max-abs scaling the two round every tensor alike, so a "
        "difference between their runs is no effect of the format."
        for first, second, factor in equal_up_to_scale(formats)
    ]


def codes(fmt: NumberFormat) -> list[dict[str, Any]]:
    """For every finite value from zero up: its index, its code, its value and the distance to the next value."""
    values = grid(fmt)
    width = fmt.exponent_bits + fmt.mantissa_bits
    return [
        {
            "Index": index,
            "Exponent field": f"{index >> fmt.mantissa_bits:0{max(fmt.exponent_bits, 1)}b}"
            if fmt.exponent_bits
            else "",
            "Mantissa field": f"{index & (2**fmt.mantissa_bits - 1):0{fmt.mantissa_bits}b}"
            if fmt.mantissa_bits
            else "",
            "Code": f"0{index:0{width}b}",
            "Value": float(value),
            "Distance to the next": float(values[index + 1] - value) if index < fmt.max_index else None,
        }
        for index, value in enumerate(values)
    ]


def grid_figure(formats: Sequence[NumberFormat]) -> go.Figure:
    """The positive values of each format on a log2 axis; for formats of more than 8 bits only the range."""
    traces: list[dict[str, Any]] = []
    for fmt in formats:
        ends = [np.log2(fmt.min_subnormal), np.log2(fmt.max)]
        colour = format_colour(fmt.name)
        common = {"type": "scatter", "name": fmt.name, "showlegend": False}
        traces.append(
            common
            | {
                "mode": "lines",
                "x": ends,
                "y": [fmt.name] * 2,
                "line": {"color": colour, "width": 2},
                "hoverinfo": "skip",
            }
        )
        if fmt.bits <= _LISTED_BITS:
            values = grid(fmt)[1:]
            ticks = {"symbol": "line-ns-open", "size": 16, "color": colour, "line": {"width": 1}}
            text = [binary(value) for value in values]
            traces.append(
                common
                | {
                    "mode": "markers",
                    "x": np.log2(values),
                    "y": [fmt.name] * len(values),
                    "marker": ticks,
                    "text": text,
                }
                | {"hovertemplate": "%{text}<extra>%{y}</extra>"}
            )
        else:
            traces.append(
                common
                | {
                    "mode": "markers",
                    "x": ends,
                    "y": [fmt.name] * 2,
                    "marker": {"color": colour, "symbol": "line-ns-open", "size": 16},
                }
            )
    layout = {
        "height": 90 + 30 * len(formats),
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": {"title": {"text": "log2 of the value"}, "automargin": True, "zeroline": True},
        "yaxis": {"title": {"text": "Format"}, "autorange": "reversed", "automargin": True},
    }  # fmt: skip
    return go.Figure({"data": traces, "layout": layout})


def ulp_figure(formats: Sequence[NumberFormat]) -> go.Figure:
    """ULP divided by the value over the range of each format."""
    traces: list[dict[str, Any]] = []
    low = min(max(np.log2(fmt.min_subnormal), -40.0) for fmt in formats)
    high = max(min(np.log2(fmt.max), 40.0) for fmt in formats)
    exponents = np.arange(np.floor(low), np.ceil(high), 1 / 8)
    for fmt in formats:
        x = 2.0**exponents
        inside = (x >= fmt.min_subnormal) & (x <= fmt.max)
        relative = [fmt.ulp(float(value)) / value for value in x[inside]]
        stroke = {"color": format_colour(fmt.name), "width": 1.8}
        trace = {
            "type": "scatter",
            "mode": "lines",
            "x": exponents[inside],
            "y": relative,
            "line": stroke,
            "name": fmt.name,
        }
        traces.append(trace | {"hovertemplate": "%{y:.3g} at 2^%{x}<extra>%{fullData.name}</extra>"})
    layout = {
        "height": 340,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": {"title": {"text": "log2 of the value"}, "automargin": True},
        "yaxis": {"title": {"text": "ULP / value"}, "type": "log", "automargin": True, "dtick": 1, "tickformat": "~g"},
    }
    return go.Figure({"data": traces, "layout": layout})


def fits(formats: Sequence[NumberFormat], data: Mapping[str, Weighted], scaled: bool) -> dict[str, dict[str, Fit]]:
    """Distribution name -> format name -> rounding error and losses."""
    return {name: {fmt.name: fit(weighted, fmt, scaled=scaled) for fmt in formats} for name, weighted in data.items()}


def sqnr_figure(results: Mapping[str, Mapping[str, Fit]]) -> go.Figure:
    """Signal to quantization noise ratio per format, one group of bars per distribution, each bar labelled."""
    names = list(results)
    formats = list(next(iter(results.values())))
    traces = []
    for fmt in formats:
        values = [results[name][fmt].sqnr_db for name in names]
        traces.append(
            {
                "type": "bar",
                "x": names,
                "y": [value if np.isfinite(value) else None for value in values],
                "name": fmt,
                "marker": {"color": format_colour(fmt)},
                "text": [f"{value:.1f}" for value in values],
                "textposition": "outside",
                "hovertemplate": "%{x}: %{y:.1f} dB<extra>%{fullData.name}</extra>",
            }
        )
    layout = {
        "height": 380,
        "barmode": "group",
        "margin": {"l": 10, "r": 10, "t": 20, "b": 10},
        "yaxis": {"title": {"text": "SQNR (dB)"}, "automargin": True},
        "xaxis": {"title": {"text": "Values"}, "automargin": True},
    }
    return go.Figure({"data": traces, "layout": layout})


def sample_figure(sample: np.ndarray, fmt: NumberFormat, scale: float) -> go.Figure:
    """A stored sample in order of size: the values as trained, and rounded to the format with the tensor's scale."""
    finite = np.sort(sample[np.isfinite(sample)])
    held = rounded(finite / scale, fmt) * scale
    rank = np.arange(1, len(finite) + 1)
    hover = "%{y:.4g}<extra>%{fullData.name}</extra>"
    mark = {"symbol": "circle-open", "size": 7, "color": NEUTRAL}
    common = {"type": "scatter", "mode": "markers", "x": rank, "hovertemplate": hover}
    cross = {"symbol": "x-thin-open", "size": 7, "color": format_colour(fmt.name)}
    layout = {
        "height": 340,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": {"title": {"text": "Rank in the sample"}, "automargin": True},
        "yaxis": {"title": {"text": "Value"}, "automargin": True},
    }
    traces = [
        common | {"y": finite, "name": "as trained", "marker": mark},
        common | {"y": held, "name": f"in {fmt.name}", "marker": cross},
    ]
    return go.Figure({"data": traces, "layout": layout})
