"""The signals of a collapsed run as strips, in the order in which they left their own early level."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.compare import Row
from altgrad.metrics import METRICS, SITES, SiteName, columns
from altgrad.report.evidence import Evidence
from altgrad.report.signals import Departure, Signals, what_moved
from altgrad.results import Run
from altgrad.results.reading.curves import buckets, measured, non_finite_spans
from altgrad.show.palette import ALARM, NEUTRAL, format_colour
from dashboard.figures.colours import with_alpha
from dashboard.figures.curve_figures import in_lines
from dashboard.figures.curve_marks import vertical

_MOST_STRIPS = 8
_MOST_LAYERS = 12
_STRIP_HEIGHT = 92
_BUCKETS = 300
_TITLE_WIDTH = 46  # letters that fit on a phone


def signals_of(evidence: Evidence) -> Signals:
    """The whole-model signals of a run up to its verdict."""
    return what_moved(((name, evidence.curve(name)) for name in columns("step")), evidence.run.loss_unit)


def first_layers(evidence: Evidence) -> list[tuple[str, SiteName, Departure]]:
    """(layer, site, departure) of the first layers that left their early level, each with its first signal."""
    found: dict[tuple[str, SiteName], Departure] = {}
    for metric in columns("layer"):
        for site in SITES:
            for layer, curve in evidence.layer_curves(metric, site).items():
                for departure in what_moved([(metric, curve)]).moved:
                    known = found.get((layer, site))
                    if known is None or departure.order < known.order:
                        found[layer, site] = departure
    ranked = sorted(found.items(), key=lambda item: (*item[1].order[:2], item[0]))
    return [(layer, site, departure) for (layer, site), departure in ranked[:_MOST_LAYERS]]


def alike(row: Row, collapsed: Sequence[Row]) -> list[Row]:
    """Other runs that collapsed by the same rule: those of the same format first, then by distance in steps."""
    same = [other for other in collapsed if other.collapse_rule == row.collapse_rule and other.run != row.run]
    at = row.collapse_step or 0
    return sorted(same, key=lambda other: (other.format != row.format, abs((other.collapse_step or 0) - at), other.run))


def strips(evidence: Evidence, signals: Signals) -> list[str]:
    """Metrics of the strips from top to bottom, in the order of the report; the verdict's metric is always included."""
    moved = [departure.metric for departure in signals.moved]
    own = evidence.verdict.metric
    if own not in METRICS or own in moved[:_MOST_STRIPS]:
        return moved[:_MOST_STRIPS]
    return [*moved[: _MOST_STRIPS - 1], own]


def strips_figure(evidence: Evidence, signals: Signals, baseline: Run | None = None) -> go.Figure:
    """One strip per signal on a common step axis that ends just after the verdict, the BF16 run's signal behind it."""
    metrics = [name for name in strips(evidence, signals) if len(evidence.curve(name).steps)]
    departures = {departure.metric: departure for departure in signals.moved}
    layout: dict[str, Any] = {
        "height": 60 + _STRIP_HEIGHT * len(metrics),
        "margin": {"l": 10, "r": 10, "t": 20, "b": 10},
        "showlegend": False,
        "shapes": [vertical(evidence.verdict.step)],
        "annotations": [],
        "xaxis": {"title": "Step", "automargin": True, "anchor": f"y{len(metrics)}" if len(metrics) > 1 else "y"},
    }
    traces: list[dict[str, Any]] = []
    for position, (metric, (bottom, top)) in enumerate(zip(metrics, bands(len(metrics)), strict=True)):
        axis = "y" if position == 0 else f"y{position + 1}"
        layout[f"yaxis{'' if position == 0 else position + 1}"] = {
            "domain": [bottom, top - 0.25 * (top - bottom)],
            "automargin": True,
            "nticks": 3,
            "tickformat": ".3~g",
        }
        layout["annotations"].append(_title(evidence, metric, top, departures.get(metric)))
        traces += _behind(evidence, metric, axis, baseline)
        traces += _strip(evidence, metric, axis, departures.get(metric))
        layout["shapes"] += _strip_shapes(evidence, metric, axis, departures.get(metric))
    return go.Figure({"data": traces, "layout": layout})


def bands(count: int) -> list[tuple[float, float]]:
    """(bottom, top) of each strip as shares of the figure's height, from the top down; exactly within 0 and 1."""
    edges = [1 - position / count for position in range(count + 1)]
    return list(zip(edges[1:], edges[:-1], strict=True))


def _title(evidence: Evidence, metric: str, top: float, departure: Departure | None) -> dict[str, Any]:
    when = f", {departure.how} at step {departure.step}" if departure is not None else ""
    return {
        "text": "<br>".join(textwrap.wrap(f"{METRICS[metric].axis_in(evidence.run.loss_unit)}{when}", _TITLE_WIDTH)),
        "hovertext": in_lines(METRICS[metric].meaning),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": top,
        "yref": "paper",
        "yanchor": "top",
        "showarrow": False,
        "font": {"size": 11},
        "align": "left",
    }


def _behind(evidence: Evidence, metric: str, axis: str, baseline: Run | None) -> list[dict[str, Any]]:
    if baseline is None:
        return []
    steps, values = measured(baseline.table("steps", [metric]), metric).finite()
    near = steps <= evidence.verdict.step
    curve = buckets(steps[near], values[near], _BUCKETS) if near.any() else None
    if curve is None:
        return []
    return [
        {
            "type": "scatter",
            "yaxis": axis,
            "mode": "lines",
            "x": curve.steps,
            "y": curve.values,
            "name": "BF16",
            "line": {"color": format_colour("BF16"), "width": 1},
            "opacity": 0.7,
            "hovertemplate": f"BF16: {METRICS[metric].label} %{{y:.4g}}, step %{{x}}<extra></extra>",
        }
    ]


def _strip(evidence: Evidence, metric: str, axis: str, departure: Departure | None) -> list[dict[str, Any]]:
    curve = buckets(*evidence.curve(metric), _BUCKETS)
    colour = format_colour(evidence.config.format)
    values = [value if np.isfinite(value) else None for value in curve.values.tolist()]
    base = {
        "type": "scatter",
        "yaxis": axis,
        "meta": METRICS[metric].axis_in(evidence.run.loss_unit),
        "hovertemplate": f"{METRICS[metric].label} %{{y:.4g}}, step %{{x}}<extra></extra>",
    }
    mode = "lines" if len(curve.steps) > 20 else "lines+markers"
    traces = [
        base
        | {"mode": mode, "x": curve.steps, "y": values, "line": {"color": colour, "width": 1.5}, "marker": {"size": 4}}
    ]
    if departure is not None and np.isfinite(departure.value):
        traces.append(
            base
            | {"mode": "markers", "x": [departure.step], "y": [departure.value], "marker": {"color": ALARM, "size": 9}}
        )
    return traces  # fmt: skip


def _strip_shapes(evidence: Evidence, metric: str, axis: str, departure: Departure | None) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = []
    whole = {"xref": "paper", "x0": 0, "x1": 1, "yref": axis}
    if departure is not None and np.isfinite(departure.baseline):
        low, high = departure.baseline - 3 * departure.scale, departure.baseline + 3 * departure.scale
        band = {"type": "rect", "y0": low, "y1": high, "fillcolor": NEUTRAL, "opacity": 0.18, "line": {"width": 0}}
        shapes.append(whole | band | {"layer": "below"})
    verdict = evidence.verdict
    if metric == verdict.metric and np.isfinite(verdict.limit) and _is_a_level(evidence):
        limit = {
            "type": "line",
            "y0": verdict.limit,
            "y1": verdict.limit,
            "line": {"color": ALARM, "width": 1, "dash": "dot"},
        }
        shapes.append(whole | limit)
    for span in non_finite_spans(*evidence.curve(metric)):
        shade = {
            "type": "rect",
            "x0": span.first - 0.5,
            "x1": span.last + 0.5,
            "yref": f"{axis} domain",
            "y0": 0,
            "y1": 1,
        }
        shapes.append(shade | {"fillcolor": with_alpha(ALARM, 0.15), "line": {"width": 0}, "layer": "below"})
    return shapes


def _is_a_level(evidence: Evidence) -> bool:
    """Whether the verdict's limit is a value of its metric that can be drawn; that of `non_finite` is not."""
    return evidence.verdict.rule != "non_finite"
