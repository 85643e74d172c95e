"""What moved first: each signal against its own early baseline, ordered by the step at which it left it.

The baseline is robust (median, and MAD as scale) because early training is noisy, and its scale has a floor
because a signal that was constant at first (an overflow rate of 0) has no scale of its own.  A loss falls by
itself, so it is held against the best it had reached.  A signal that was out of bounds from its first measurement
never leaves its baseline and still comes first: a stall that begins at step 1 is the most common failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altgrad.curves import Curve
from altgrad.metrics import METRICS

LIMIT = 6.0  # scales from the median that count as having left
_DENSE = 20  # measurements from which on one that stands alone is noise
_FEWEST = 3
_NORMAL = 1.4826  # MAD of a normal distribution to its standard deviation
_NO_SIGNALS = frozenset(
    {"learning_rate", "tokens", "elapsed_seconds", "tokens_per_second", "gradient_stiffness_shuffled"}
)
_LOSSES = frozenset({"loss", "validation_loss", "shadow_loss"})
# Smallest scale: absolute by unit or metric, otherwise this share of the median.
_FLOORS: Mapping[str, float] = {"share": 0.005, "nats": 0.05, "cos": 0.01, "r": 0.03, "ULP": 0.02, "dB": 0.5}
_METRIC_FLOORS: Mapping[str, float] = {"non_finite_gradients": 1e-9, "overflow_rate": 0.001}
_RELATIVE_FLOOR = 0.05
# Beyond these a signal is out of bounds whatever it was before: (limit, whether above it is bad).
_BOUNDS: Mapping[str, tuple[float, bool]] = {
    "non_finite_gradients": (0.0, True),
    "overflow_rate": (0.01, True),
    "underflow_rate": (0.5, True),
    "realised_displacement": (0.25, False),
    "gradient_sparsity": (0.9, True),
    "gradient_cosine_similarity": (0.5, False),
}
How = Literal["rose", "fell", "became NaN or inf", "out of bounds from the start"]


@dataclass(frozen=True)
class Departure:
    """A signal that left its baseline: at `step` it had `value`; `baseline` ± `scale` over steps `first` to `last`."""

    metric: str
    step: int
    value: float
    how: How
    baseline: float
    scale: float
    first: int
    last: int
    n: int

    @property
    def distance(self) -> float:
        """Scales away from the baseline; inf for a non-finite value."""
        return abs(self.value - self.baseline) / self.scale if np.isfinite(self.value) else float("inf")


@dataclass(frozen=True)
class Signals:
    """`moved` in order of who left first; `still` did not leave; `sparse` had too few measurements to say."""

    moved: list[Departure]
    still: list[str]
    sparse: list[str]


def what_moved(curves: Iterable[tuple[str, Curve]]) -> Signals:
    """Sort metrics (name, curve up to the verdict) by the step at which they left their own early baseline."""
    moved: list[Departure] = []
    still: list[str] = []
    sparse: list[str] = []
    for metric, curve in curves:
        if metric in _NO_SIGNALS or not len(curve.values):
            continue
        departure = _departure(metric, curve)
        if departure is not None:
            moved.append(departure)
        elif len(curve.values) < _FEWEST:
            sparse.append(metric)
        else:
            still.append(metric)
    moved.sort(key=lambda departure: (departure.step, -departure.distance, departure.metric))
    return Signals(moved, still, sparse)


def _departure(metric: str, curve: Curve) -> Departure | None:
    """The first lasting departure of one signal, or None."""
    steps, values = curve
    n = len(values)
    window = min(max(10, n // 10), 50) if n >= _DENSE else max(2, n // 4)
    early = values[:window][np.isfinite(values[:window])]
    center = float(np.median(early)) if len(early) else float("nan")
    reference = _best_so_far(values) if metric in _LOSSES else np.full(n, center)
    spread = (values - reference)[:window]
    spread = spread[np.isfinite(spread)]
    mad = float(np.median(np.abs(spread - np.median(spread)))) if len(spread) else 0.0
    scale = max(_NORMAL * mad, _floor(metric, center))

    def at(index: int, how: How) -> Departure:
        baseline = center if not np.isfinite(reference[index]) else float(reference[index])
        last = int(steps[min(window, n) - 1])
        return Departure(
            metric, int(steps[index]), float(values[index]), how, baseline, scale, int(steps[0]), last, len(early)
        )

    if not np.isfinite(values[0]) or _out_of_bounds(metric, early):
        return at(0, "out of bounds from the start")
    out = _outside(metric, values - reference, LIMIT * scale)
    out[: min(window, n)] = False  # the baseline does not leave itself
    broken = ~np.isfinite(values)
    lasting = out & (np.append(out[1:] | broken[1:], True) | _outside(metric, values - reference, 5 * LIMIT * scale))
    left = np.flatnonzero((out if n < _DENSE else lasting) | broken)
    if n < _FEWEST or not len(left):
        return None
    index = int(left[0])
    if broken[index]:
        return at(index, "became NaN or inf")
    return at(index, "rose" if values[index] > reference[index] else "fell")


def _outside(metric: str, deviation: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    """Where the deviation passes the limit in the direction that is bad for this metric."""
    better = METRICS[metric].better
    with np.errstate(invalid="ignore"):
        return ((deviation > limit) & (better != "higher")) | ((deviation < -limit) & (better != "lower"))


def _best_so_far(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest finite value before each measurement; the first is its own."""
    best = np.minimum.accumulate(np.where(np.isfinite(values), values, np.inf))
    return np.concatenate([best[:1], best[:-1]])


def _floor(metric: str, center: float) -> float:
    absolute = _METRIC_FLOORS.get(metric, _FLOORS.get(METRICS[metric].unit))
    if absolute is not None:
        return absolute
    return max(_RELATIVE_FLOOR * abs(center), 1e-12) if np.isfinite(center) else 1e-12


def _out_of_bounds(metric: str, early: NDArray[np.float64]) -> bool:
    if metric not in _BOUNDS or not len(early):
        return False
    limit, above = _BOUNDS[metric]
    center = float(np.median(early))
    return center > limit if above else center < limit
