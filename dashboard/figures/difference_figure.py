"""The difference between two groups of runs by step, with its band and the margin."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from altgrad.compare import GroupDifference, Row
from altgrad.compare.parity.pairs import DifferenceCurve
from altgrad.metrics import METRICS
from altgrad.show.palette import NEUTRAL, curve_dash, format_colour
from dashboard.figures.colours import FAINT, with_alpha
from dashboard.figures.curve_figures import in_lines


def difference_figure(curve: DifferenceCurve, row: Row, found: GroupDifference) -> go.Figure:
    """A line for the mean, a band for its interval, and the margin shaded around 0; `row`: of the first group."""
    colour, steps = format_colour(row.format), curve.steps.tolist()
    edge: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": steps, "line": {"width": 0}, "hoverinfo": "skip"}
    traces: list[dict[str, Any]] = []
    if curve.n > 1:
        traces.append(edge | {"y": curve.low, "showlegend": False, "meta": "lower end of the 95 % interval"})
        fill = {"fill": "tonexty", "fillcolor": with_alpha(colour, 0.2), "name": "95 % interval"}
        traces.append(edge | {"y": curve.high, "meta": "upper end of the 95 % interval"} | fill)
    stroke = {"color": colour, "dash": curve_dash(row.format, row.intervention), "width": 1.8}
    name = in_lines(f"{found.one} minus {found.other}")
    mode = "lines+markers" if len(steps) < 30 else "lines"
    traces.append({"type": "scatter", "mode": mode, "x": steps, "y": curve.mean, "name": name, "line": stroke})
    unit = f" ({found.parity.unit})" if found.parity.unit else ""
    layout: dict[str, Any] = {
        "height": 340,
        "margin": {"l": 10, "r": 10, "t": 20, "b": 10},
        "xaxis": {"title": {"text": "Step"}, "automargin": True},
        "yaxis": {
            "title": {"text": f"{METRICS['validation_loss'].label}, difference{unit}"},
            "automargin": True,
            "zerolinecolor": NEUTRAL,
        },
        "legend": {"orientation": "h", "y": 1.12},
    }
    if found.parity.margin is not None:
        layout["shapes"] = [
            {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -found.parity.margin, "y1": found.parity.margin,
             "fillcolor": FAINT, "line": {"width": 0}, "layer": "below"}
        ]  # fmt: skip
    return go.Figure({"data": traces, "layout": layout})
