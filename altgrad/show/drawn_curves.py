"""The data of a chart of curves: one line per run, thinned without losing a spike, with its non-finite spans.

Smoothing, the difference to the baseline and the non-finite spans are computed from all rows; only then the curve is
cut to the visible window and thinned.  So the values in a picture do not depend on the zoom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altgrad.compare import Row
from altgrad.metrics import METRICS
from altgrad.results import Run
from altgrad.results.reading.curves import Curve, Span, buckets, difference, measured, non_finite_spans, smooth
from altgrad.results.reading.own_metrics import curve_of
from altgrad.text.number_text import number

Axis = Literal["step", "tokens", "elapsed_seconds"]
AXES: Mapping[Axis, str] = {
    "step": "Step",
    "tokens": METRICS["tokens"].label,
    "elapsed_seconds": METRICS["elapsed_seconds"].axis_in(""),
}
_HEALTHY = ("completed", "running", "stopped")


@dataclass(frozen=True)
class View:
    """Settings of a chart: metric, x-axis, window (steps `first` to `last`), smoothing half-life in measurements.

    `buckets`: see `curves.buckets`.  `difference`: draw the difference to the baseline instead of the metric.
    """

    metric: str
    axis: Axis = "step"
    half_life: float = 0.0
    first: int | None = None
    last: int | None = None
    buckets: int = 400
    difference: bool = False


@dataclass(frozen=True)
class Line:
    """One run's line: `smoothed` is drawn over `raw` (the same object without smoothing).

    `x_raw` and `x_smoothed` are in units of the view's axis.  `spans`: the non-finite spans inside the window.
    `branch`: step and name of the run that this one branched from; its own measurements begin after that step.
    """

    row: Row
    raw: Curve
    smoothed: Curve
    x_raw: NDArray[np.float64]
    x_smoothed: NDArray[np.float64]
    spans: list[Span]
    position: Curve | None  # step -> x, to place spans and events; None if x is the step
    view: View
    branch: tuple[int, str] | None = None

    def is_in_window(self, step: float) -> bool:
        """Whether a step lies in the view's window."""
        first, last = self.view.first, self.view.last
        return (first is None or step >= first) and (last is None or step <= last)

    def height(self, step: float) -> float | None:
        """The drawn value at a step; None before the first and after the last finite value, where no line is drawn."""
        steps, values = self.smoothed.finite()
        inside = len(steps) > 0 and steps[0] <= step <= steps[-1]
        return float(np.interp(step, steps, values)) if inside else None

    def x(self, step: float) -> float:
        """The position of a step on the x-axis."""
        return step if self.position is None else float(np.interp(step, self.position.steps, self.position.values))


def line(row: Row, run: Run, view: View, baseline: Run | None = None) -> Line | None:
    """The line of a run; None if the metric was not measured, or with `view.difference` if there is no baseline."""
    curve = curve_in(view, run, baseline)
    if curve is None:
        return None
    shown = in_window(curve, view)
    raw = over = buckets(*shown, view.buckets) if len(shown.steps) else shown
    if view.half_life and len(shown.steps):
        smoothed = in_window(Curve(curve.steps, smooth(curve.values, view.half_life)), view)
        kept = np.union1d(raw.steps, buckets(*smoothed, view.buckets).steps)  # the same steps, to stand in one table
        at = np.searchsorted(shown.steps, kept)
        raw, over = Curve(kept, shown.values[at]), Curve(kept, smoothed.values[at])
    position = position_of(run, view.axis)
    return Line(
        row=row,
        raw=raw,
        smoothed=over,
        x_raw=x_at(raw.steps, position),
        x_smoothed=x_at(over.steps, position),
        spans=non_finite_spans(*shown),
        position=position,
        view=view,
        branch=run.branch,
    )


@dataclass(frozen=True)
class Death:
    """The end of a run that collapsed, failed or was killed: at `step`, where its line has the `value`.

    `died`: the step of the verdict, or the last one; `step` is the last measurement up to it.
    """

    step: int
    value: float
    died: int
    why: str

    def __str__(self) -> str:
        last = "" if self.step == self.died else f"; last measured at step {self.step}"
        return f"{self.why} at step {self.died}{last}"


def death(one: Line) -> Death | None:
    """Where a run died; None for a run that did not, and if the line does not reach that step in the window."""
    row = one.row
    if row.collapse_step is not None:
        died, why = row.collapse_step, f"collapsed ({row.collapse_rule})"
    elif row.status in ("failed", "killed"):
        died, why = row.step, row.status
    else:
        return None
    steps, values = one.smoothed.finite()
    before = int(np.searchsorted(steps, died, side="right")) - 1
    if before < 0 or not one.is_in_window(died):
        return None
    return Death(int(steps[before]), float(values[before]), died, why)


def curve_in(view: View, run: Run, baseline: Run | None) -> Curve | None:
    """The curve of a run for a view, before smoothing, of all steps; None if it has no points."""
    curve = curve_of(run, view.metric)
    if view.difference:
        if baseline is None:
            return None
        curve = difference(curve, curve_of(baseline, view.metric))
    return curve if len(curve.steps) else None


def in_window(curve: Curve, view: View) -> Curve:
    """The part of a curve in the view's window."""
    keep = np.ones(len(curve.steps), bool)
    if view.first is not None:
        keep &= curve.steps >= view.first
    if view.last is not None:
        keep &= curve.steps <= view.last
    return Curve(curve.steps[keep], curve.values[keep])


def position_of(run: Run, axis: Axis) -> Curve | None:
    """Step -> x; None if x is the step."""
    return None if axis == "step" else measured(run.table("steps", [axis]), axis)


def x_at(steps: NDArray[np.int64], position: Curve | None) -> NDArray[np.float64]:
    """The places of steps on the x-axis; position: see `position_of`."""
    return steps.astype(np.float64) if position is None else np.interp(steps, position.steps, position.values)


def scale(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Limits of the y-axis, from the healthy runs only: a diverged run must not flatten the other curves.

    Runs that did not collapse, fail or get killed are healthy; if there are none, all runs count.  The limits are the
    quantiles 0.005 and 0.98 of their values, or the extremes where these are near.  None without any finite value.
    """
    healthy = _healthy(lines)
    values = [line.raw.finite().values for line in healthy]
    pooled = np.concatenate(values) if values else np.empty(0)
    if not len(pooled):
        return None
    low, high = np.quantile(pooled, [0.005, 0.98])
    reach = max(high - low, 1e-12)
    low = float(pooled.min()) if pooled.min() > low - reach else float(low)
    high = float(pooled.max()) if pooled.max() < high + reach else float(high)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    bottom = low - margin if low < 0 else max(low - margin, -0.01 * margin)  # no tick at -2 % for a share
    return bottom, high + margin


def _healthy(lines: Sequence[Line]) -> list[Line]:
    """Lines of runs that did not collapse, fail or get killed; all lines if there are none."""
    return [line for line in lines if line.row.status in _HEALTHY and not line.row.collapsed] or list(lines)


def log_scale(lines: Sequence[Line]) -> tuple[float, float] | None:
    """As `scale`, for a logarithmic axis: the lower limit is the smallest positive value that is not an outlier."""
    limits = scale(lines)
    if limits is None or limits[1] <= 0:
        return None
    pooled = np.concatenate([line.raw.finite().values for line in _healthy(lines)])
    positive = pooled[pooled > 0]
    if not len(positive):
        return None
    low = max(float(np.quantile(positive, 0.005)), float(positive.min()))
    return (limits[0] if limits[0] > 0 else low / 1.1), limits[1]


def not_on_log(lines: Iterable[Line]) -> int:
    """Number of drawn measurements that a logarithmic axis cannot show: zero and negative values."""
    return sum(int((line.raw.finite().values <= 0).sum()) for line in lines)


def off_scale(line: Line, limits: tuple[float, float]) -> tuple[list[int], list[int]]:
    """Steps at which a line leaves the y-axis: (above, below), the first step of each stretch outside.

    It is the raw line: a spike of one step is marked also where the smoothed line stays inside.  Infinite values are
    not included: they are marked as non-finite.
    """
    steps, values = line.raw
    finite, result = np.isfinite(values), []
    for outside in (finite & (values > limits[1]), finite & (values < limits[0])):
        starts = outside & ~np.concatenate([[False], outside[:-1]])
        result.append([int(step) for step in steps[starts]])
    return result[0], result[1]


def non_finite_count(lines: Iterable[Line]) -> int:
    """Number of measurements in the window that are NaN or inf: the sum of the marks on the chart."""
    return sum(span.count for line in lines for span in line.spans)


def describe(lines: Sequence[Line]) -> str:
    """A description of a chart of these lines in a few sentences."""
    counted = [one for one in lines if not one.row.collapsed] or lines  # the last value of a collapsed run is no result
    ends = {one.row.run: float(one.raw.finite().values[-1]) for one in counted if len(one.raw.finite().values)}
    last = max(int(one.raw.steps[-1]) for one in lines)
    many = len(lines) > 1
    said = [f"{len(lines)} run{'s' if many else ''}, up to step {last}."]
    if ends:
        best = min(ends, key=lambda name: ends[name])
        value = f"{'Lowest last' if many else 'Last'} finite value: {number(ends[best])}"
        said.append(f"{value} ({best})." if many else f"{value}.")
    broken = non_finite_count(lines)
    if broken:
        affected = f" in {sum(bool(one.spans) for one in lines)} of {len(lines)} runs" if many else ""
        said.append(f"{broken} non-finite value{'s' if broken > 1 else ''}{affected}.")
    collapsed = [one for one in lines if one.row.collapsed]
    if collapsed and many:
        said.append(f"{len(collapsed)} of {len(lines)} collapsed.")
    elif collapsed:
        said.append(f"Collapsed at step {collapsed[0].row.collapse_step}.")
    return " ".join(said)
