"""The section "What moved first": signals in the order of the steps at which they left their own early baseline.

The baseline is robust, with the median as center and the median absolute deviation (MAD) as scale, because early
training is noisy.  The scale has a lower bound, because a signal that is constant at first, such as an overflow rate of
0, has a MAD of 0.  A loss normally falls, so it is compared with its best value so far.  A signal that is out of bounds
from its first measurement on never leaves its baseline, but it is listed first: a stall from step 1 on is the most
common failure.  Example: an overflow rate is 0 until step 80 and 0.02 from step 100 on.  Its scale is the lower bound,
0.001, so at step 100 it is 20 scales from the median, more than `LIMIT`: it rose at step 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altgrad.metrics import METRICS
from altgrad.report.thresholds import is_out_of_bounds
from altgrad.results.reading.curves import Curve
from altgrad.text.number_text import number

LIMIT = 6.0  # distance from the median, in scales, that counts as a departure
_DENSE = 20  # in curves of at least this length, a single outlier counts as noise
_FEWEST = 3
_NORMAL = 1.4826  # standard deviation of a normal distribution divided by its MAD
_LOSSES = frozenset({"loss", "validation_loss", "shadow_loss"})
# Smallest scale of a metric or a unit; for other units `_RELATIVE_FLOOR` times the median.
_METRIC_FLOORS: Mapping[str, float] = {"non_finite_gradients": 1e-9, "overflow_rate": 0.001}
_FLOORS: Mapping[str, float] = {"share": 0.005, "nats": 0.05, "cos": 0.01, "r": 0.03}
_RELATIVE_FLOOR = 0.1
# Largest scale of a bounded signal whose baseline has fewer than `_FEW` values, which cannot separate noise from trend.
_CEILINGS: Mapping[str, float] = {"share": 0.03, "ratio": 0.05, "cos": 0.03, "r": 0.05}
_FEW = 5
HowItLeft = Literal["rose", "fell", "became NaN or inf", "out of bounds from the start"]


@dataclass(frozen=True)
class Departure:
    """A signal that left its baseline: at `step` it had `value`, at the verdict `final`.

    `baseline` ± `scale` come from `n` finite measurements at steps `first` to `last`.
    """

    metric: str
    step: int
    value: float
    final: float
    how: HowItLeft
    baseline: float
    scale: float
    first: int
    last: int
    n: int

    @property
    def order(self) -> tuple[float, float, str]:
        """Sort key: by step, at the same step the largest distance first, then by name."""
        return self.step, -self.distance, self.metric

    @property
    def change(self) -> str:
        """The departure in words: `rose: 0.02 → 0.31`, or the value alone if it was out of bounds from the start.

        The two values have as many digits as it takes to distinguish them: `0.99999 → 1`, not `1 → 1`.
        """
        if self.how == "out of bounds from the start":
            return f"{number(self.value)}: {self.how}"
        digits = next((n for n in range(4, 17) if number(self.baseline, n) != number(self.value, n)), 17)
        return f"{self.how}: {number(self.baseline, digits)} → {number(self.value, digits)}"

    @property
    def distance(self) -> float:
        """Distance from the baseline in scales; inf for a non-finite value."""
        return abs(self.value - self.baseline) / self.scale if np.isfinite(self.value) else float("inf")


@dataclass(frozen=True)
class Signals:
    """`moved`: departures, earliest first; `still`: signals without one; `sparse`: those with too few measurements."""

    moved: list[Departure]
    still: list[str]
    sparse: list[str]


def what_moved(curves: Iterable[tuple[str, Curve]], loss_unit: str = "nats") -> Signals:
    """Find the departure of each metric from its own early baseline; `curves`: (name, curve up to the verdict).

    `loss_unit`: `Run.loss_unit`; for a known unit the scale of a loss has a lower bound in nats, else a relative one.
    """
    moved: list[Departure] = []
    still: list[str] = []
    sparse: list[str] = []
    for metric, curve in curves:
        if not METRICS[metric].is_signal or not len(curve.values):
            continue
        departure = _departure(metric, curve, loss_unit)
        if departure is not None:
            moved.append(departure)
        elif len(curve.values) < _FEWEST:
            sparse.append(metric)
        else:
            still.append(metric)
    moved.sort(key=lambda departure: departure.order)
    return Signals(moved, still, sparse)


@dataclass(frozen=True)
class _Baseline:
    """The baseline of a signal from its first `window` values: measurement i is compared with `reference[i]` ± `scale`.

    `center`: the median of the `n` finite values among them.
    """

    reference: NDArray[np.float64]
    center: float
    scale: float
    window: int
    n: int


def _baseline(metric: str, values: NDArray[np.float64], loss_unit: str) -> _Baseline:
    n = len(values)
    window = min(max(10, n // 10), 50) if n >= _DENSE else min(max(2, n // 4), n)
    early = values[:window][np.isfinite(values[:window])]
    center = float(np.median(early)) if len(early) else float("nan")
    reference = _best_so_far(values) if metric in _LOSSES else np.full(n, center)
    with np.errstate(invalid="ignore"):
        spread = (values - reference)[:window]
    spread = spread[np.isfinite(spread)]
    mad = _NORMAL * float(np.median(np.abs(spread - np.median(spread)))) if len(spread) else 0.0
    if len(spread) < _FEW:
        mad = min(mad, _CEILINGS.get(METRICS[metric].unit, mad))
    return _Baseline(reference, center, max(mad, _floor(metric, center, loss_unit)), window, len(early))


def _departure(metric: str, curve: Curve, loss_unit: str) -> Departure | None:
    """The first lasting departure of one signal; None if it stayed at its baseline."""
    steps, values = curve
    baseline = _baseline(metric, values, loss_unit)
    found = _first_out(metric, values, baseline)
    if found is None:
        return None
    index, how = found
    reference = float(baseline.reference[index])
    return Departure(
        metric=metric,
        step=int(steps[index]),
        value=float(values[index]),
        final=float(values[-1]),
        how=how,
        baseline=reference if np.isfinite(reference) else baseline.center,
        scale=baseline.scale,
        first=int(steps[0]),
        last=int(steps[baseline.window - 1]),
        n=baseline.n,
    )


def _first_out(metric: str, values: NDArray[np.float64], baseline: _Baseline) -> tuple[int, HowItLeft] | None:
    """Index of the first measurement outside the baseline, and the kind of departure; None if there is none."""
    if not np.isfinite(values[0]) or is_out_of_bounds(metric, baseline.center):
        return 0, "out of bounds from the start"
    with np.errstate(invalid="ignore"):
        deviation = values - baseline.reference
    broken = ~np.isfinite(values)
    out = _outside(metric, deviation, LIMIT * baseline.scale)
    if len(values) >= _DENSE:  # a single outlier counts only if it is very far out
        out &= np.append(out[1:] | broken[1:], True) | _outside(metric, deviation, 5 * LIMIT * baseline.scale)
    out[: baseline.window] = False  # the measurements of the baseline itself do not count
    left = np.flatnonzero(out | broken)
    if not len(left):
        return None
    index = int(left[0])
    if broken[index]:
        return index, "became NaN or inf"
    return index, "rose" if deviation[index] > 0 else "fell"


def _outside(metric: str, deviation: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    """Mask of the deviations that exceed the limit in the direction that is bad for this metric."""
    better = METRICS[metric].better
    with np.errstate(invalid="ignore"):
        return ((deviation > limit) & (better != "higher")) | ((deviation < -limit) & (better != "lower"))


def _best_so_far(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest finite value before each measurement; for the first one its own value."""
    best = np.minimum.accumulate(np.where(np.isfinite(values), values, np.inf))
    return np.concatenate([best[:1], best[:-1]])


def _floor(metric: str, center: float, loss_unit: str) -> float:
    unit = METRICS[metric].unit
    absolute = _METRIC_FLOORS.get(metric, _FLOORS.get(loss_unit if unit == "nats" else unit))
    if absolute is not None:
        return absolute
    return max(_RELATIVE_FLOOR * abs(center), 1e-12) if np.isfinite(center) else 1e-12
