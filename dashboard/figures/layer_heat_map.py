"""Heat maps of layers by steps, from a run's layers table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altgrad.metrics import METRICS
from altgrad.show.palette import ALARM
from altgrad.text.foreign_text import as_label
from dashboard.figures.colours import SEQUENTIAL
from dashboard.figures.curve_marks import vertical

_MOST_STEPS = 400
_SMALL_SHARE = 0.25
_AXIS = {"automargin": True, "nticks": 4, "tickangle": 0}


@dataclass(frozen=True)
class Heat:
    """`values[i, j]`: value of layer i at step j, NaN if not measured; `non_finite`: mask of measured NaN and inf."""

    layers: list[str]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    non_finite: NDArray[np.bool_]

    @property
    def finite(self) -> NDArray[np.float64]:
        """The finite values, without their places."""
        return self.values[np.isfinite(self.values)]

    @property
    def constant(self) -> float | None:
        """The value of all cells; None if they differ or one is NaN or inf."""
        finite = self.finite
        alike = len(finite) > 0 and not self.non_finite.any() and bool((finite == finite[0]).all())
        return float(finite[0]) if alike else None


def heat(table: pa.Table, metric: str, site: str) -> Heat | None:
    """The heat map of a metric at a site; None if it was not measured.  It has at most 400 evenly spaced steps."""
    rows = table.filter(pc.equal(table["site"], site)).select(["step", "layer", metric]).drop_null()
    if not rows.num_rows:
        return None
    layers = list(dict.fromkeys(rows["layer"].to_pylist()))
    steps, column = np.unique(rows["step"].to_numpy(), return_inverse=True)
    index = {name: position for position, name in enumerate(layers)}
    values = np.full((len(layers), len(steps)), np.nan)
    measured = np.zeros(values.shape, bool)
    at = np.array([index[name] for name in rows["layer"].to_pylist()]), column
    values[at] = rows[metric].to_numpy()
    measured[at] = True
    if len(steps) > _MOST_STEPS:
        kept = np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).astype(int))
        steps, values, measured = steps[kept], values[:, kept], measured[:, kept]
    return Heat(layers, steps, values, measured & ~np.isfinite(values))


def shared_scale(maps: Sequence[Heat], metric: str) -> tuple[float, float] | None:
    """The ends of the colours for maps of one metric; None without a finite value."""
    finite = np.concatenate([data.finite for data in maps]) if maps else np.empty(0)
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if METRICS[metric].unit in ("share", "cos") and low >= 0:
        # colours of shares start at 0; they end at 1, or at the largest if that is small, to show differences
        return 0.0, high if 0 < high <= _SMALL_SHARE else 1.0
    return low, high


def heat_figure(
    data: Heat,
    metric: str,
    collapse_step: int | None,
    limits: tuple[float, float] | None = None,
    steps: tuple[int, int] | None = None,
) -> go.Figure:
    """Layers from top to bottom, steps to the right, a line at the collapse step, crosses at non-finite values.

    limits, steps: the ends of the colours and of the steps, if they are shared with another map (`shared_scale`).
    """
    title = METRICS[metric]
    limits = shared_scale([data], metric) if limits is None else limits
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": data.steps,
        "y": [as_label(name) for name in data.layers],
        "z": np.where(np.isfinite(data.values), data.values, np.nan),
        "colorscale": SEQUENTIAL,
        "colorbar": {"title": {"text": title.unit or " ", "side": "top"}, "thickness": 12, "tickformat": ".3~g"},
        "hovertemplate": f"%{{y}}<br>step %{{x}}<br>{title.label} %{{z:.4g}}<extra></extra>",
        "hoverongaps": False,
    }
    if limits is not None:
        trace |= {"zmin": limits[0], "zmax": limits[1]}
    traces = [trace]
    rows, columns = np.nonzero(data.non_finite)
    if len(rows):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": data.steps[columns],
                "y": [as_label(data.layers[row]) for row in rows],
                "marker": {"symbol": "x", "size": 7, "color": ALARM},
                "name": "NaN or inf",
                "hovertemplate": "NaN or inf at step %{x}<extra>%{y}</extra>",
            }
        )
    layout = {
        "height": max(180, 90 + 22 * len(data.layers)),
        "margin": {"l": 10, "r": 10, "t": 20, "b": 10},
        "xaxis": {"title": {"text": "Step"}, **_AXIS, **_range(steps, data.steps, collapse_step)},
        "yaxis": {"title": {"text": "Layer"}, "automargin": True, "autorange": "reversed"},
        "shapes": _verdict_line(collapse_step) if collapse_step is not None else [],
    }
    return go.Figure({"data": traces, "layout": layout})


def _verdict_line(step: int) -> list[dict[str, Any]]:
    """A dashed line with a light edge, which is seen on dark and on light cells."""
    edge = vertical(step, "#ffffff")
    return [edge | {"line": {"color": "#ffffff", "width": 4}}, vertical(step)]


def _range(shown: tuple[int, int] | None, steps: NDArray[np.int64], collapse_step: int | None) -> dict[str, Any]:
    """The given steps, or a range that includes the verdict after the last measurement; else Plotly's own."""
    if shown is not None:
        return {"range": list(shown)}
    if collapse_step is None or collapse_step <= steps[-1]:
        return {}
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    return {"range": [float(steps[0] - half), collapse_step + float(half) / 4]}
