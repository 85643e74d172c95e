"""The course of the loss as the rules see it, and the size of a margin in units of that loss.

The cross-entropy of a known vocabulary is in nats, and so are its margins: a loss 0.15 nats below ln(256) = 5.545
counts as learning.  A loss of unknown unit (a squared error, a negative log-likelihood, ...) has neither such a scale
nor a zero: a regression that starts at 0.09 can never learn 0.15, and for one that starts at 4,000 it is nothing.  For
such a loss a margin of m nats means m / 3 of the run's progress so far: the margins were chosen on runs that
learned about 3 nats.  Example: a regression went from 0.09 to 0.004, so its progress is 0.086, and the margin of half a
nat is a sixth of it, 0.014.  A margin is at least the scatter of the batches.  If every loss of unknown unit is
multiplied by a constant, every margin is too, so no verdict changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from altgrad.collapse.smoothing import REACH, Smoothed

START_STEPS = 5  # finite losses whose median is the initial loss
USUAL_CAP = math.log(256)  # nats; the margins of a smaller vocabulary are smaller in proportion to its logarithm
USUAL_PROGRESS = 3.0  # nats that a run of the usual vocabulary learns
RESOLUTION = 1e-6  # share of the loss below which float32 losses can hardly be distinguished
OUTLYING = 8.0  # multiple of the batches' scatter that a single batch exceeds only if something is wrong with it
_SLOW = 25  # ticks, half-life of the slow average and of the scatter
_SIGMA = 1.25  # standard deviation of a normal distribution divided by its mean absolute deviation
_BUMP = 1 / 12  # share of the initial loss by which a loss of unknown unit must rise at least to have left its best
_SURE = 3.5  # half the width of an average's confidence interval, in standard errors


@dataclass
class Trend:
    """A slow average of the loss with a confidence interval, and whether it ever fell by more than chance explains.

    The interval is `_SURE` standard errors to either side of the average; `height` is the highest lower end so far.
    The loss has fallen once the upper end of an interval lies below `height`.  Example: batches scatter by 0.1 around
    2.0.  The average over the first 20 ticks is 2.0 +- 0.09, so `height` is 1.91; later intervals are +- 0.05.  An
    average of 1.8 has the upper end 1.85: the loss has fallen.  An average of 1.9 has 1.95: that may be chance.
    """

    average: Smoothed = field(default_factory=Smoothed)
    scatter: Smoothed = field(default_factory=Smoothed)  # mean absolute deviation from the smoothed loss
    squares: float = 0.0  # sum of squared weights: variance of the average = squares / weight^2 * variance of a value
    height: float | None = None
    fell: bool = False

    def update(self, loss: float, smoothed: float | None, ticks: float, reach: float) -> None:
        """Add a finite loss, whose distance from the `smoothed` loss is its scatter; see `Smoothed.update`."""
        self.average.update(loss, ticks, reach, _SLOW)
        keep = 0.5 ** (ticks / _SLOW)
        # the batches of one tick count as one batch, because their noise may be correlated
        self.squares = keep**2 * self.squares + (1 - keep) ** 2 / ticks
        if smoothed is not None:
            self.scatter.update(min(abs(loss - smoothed), reach), ticks, math.inf, _SLOW)

    def look(self) -> None:
        """Compare the current interval with `height`, then raise `height` to its lower end."""
        margin, value = self.margin, self.average.value
        if margin is None or value is None:
            return
        if self.height is not None and value + margin < self.height:
            self.fell = True
        self.height = value - margin if self.height is None else max(self.height, value - margin)

    @property
    def margin(self) -> float | None:
        """Half the width of the interval around the average; None before the first deviation."""
        value, scatter = self.average.value, self.scatter.value
        if value is None or scatter is None:
            return None
        error = _SIGMA * scatter * math.sqrt(self.squares) / self.average.weight
        return max(_SURE * error, RESOLUTION * abs(value))


@dataclass
class LossCourse:
    """Start of the loss, its smoothed value, the best smoothed value, and the scatter of the batches.

    The best counts only from the step on at which the average is settled, since one lucky batch at the start would
    otherwise be the best for ever.  `pace`: steps per tick.  `cap`: ln(vocabulary), the loss of a uniform model; None
    if the unit of the loss is unknown.  Losses of exactly 0 at the start are ignored: they come from masked batches,
    or from a term that is still switched off.

    Example, 256 classes, 500 steps: losses 5.6, 5.5, 5.7, 5.5, 5.4, ... give `initial` 5.5, their median; the average
    is settled after 20 steps; at step 200 it has come down to 2.45, so `best` is 2.45 and `progress` 3.05.
    """

    pace: float = 1.0
    cap: float | None = USUAL_CAP
    step: int | None = None
    smoothed: Smoothed = field(default_factory=Smoothed)
    trend: Trend = field(default_factory=Trend)
    first: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int | None = None
    best_scatter: float = 0.0

    def ticks(self, step: int) -> float:
        """Ticks between the last recorded step and `step`, at most 1."""
        return min(1.0, (1 if self.step is None else step - self.step) / self.pace)

    def update(self, step: int, loss: float) -> None:
        """Add a step's loss (may be NaN or inf)."""
        ticks = self.ticks(step)
        self.step = step
        if not math.isfinite(loss) or (loss == 0 and not self.first):
            return
        reach, before = self._reach(), self.smoothed.value
        self.trend.update(loss, before, ticks, reach)
        self.smoothed.update(loss, ticks, reach)
        value = self.smoothed.value
        if len(self.first) < START_STEPS:
            self.first.append(loss)
        if value is None or not self.smoothed.settled:
            return
        self.trend.look()
        if self.best is None or value < self.best:
            self.best, self.best_step = value, step
            self.best_scatter = self.trend.scatter.value or 0.0

    @property
    def initial(self) -> float | None:
        """Median of the first five finite losses; None until there are five."""
        return sorted(self.first)[START_STEPS // 2] if len(self.first) == START_STEPS else None

    @property
    def progress(self) -> float:
        """The fall from the initial loss to the best smoothed loss, in units of the loss; at least 0."""
        return 0.0 if self.initial is None or self.best is None else max(0.0, self.initial - self.best)

    @property
    def unit_word(self) -> str:
        """` nats`, to follow a number in a sentence; "" if the unit is unknown."""
        return "" if self.cap is None else " nats"

    def margin(self, nats: float, scatters: float = 1.0, progress: float | None = None) -> float:
        """A margin of `nats`, converted to units of this loss.

        256 classes or more: `nats` unchanged.  2 classes, for which a uniform model has 0.693: an eighth of `nats`.
        Unknown unit: `nats` / 3 times `progress` (by default the run's own), and at least `scatters` times the scatter
        of the batches.
        """
        if self.cap is not None:
            return nats * min(1.0, self.cap / USUAL_CAP)
        learned = self.progress if progress is None else progress
        scatter = self.best_scatter if self.best is not None else self.trend.scatter.value or 0.0
        return max(nats / USUAL_PROGRESS * learned, scatters * scatter, RESOLUTION * abs(self.initial or 0.0))

    def least_rise(self, nats: float, scatters: float) -> float:
        """The rise above the best that is no fluctuation; `nats`, `scatters`: see `margin`.

        Of an unknown unit it is at least a twelfth of the initial loss, and before the loss has fallen at all, that
        loss itself.
        """
        least = self.margin(nats, scatters)
        if self.cap is not None:
            return least
        return max(least, (_BUMP if self.trend.fell else 1.0) * abs(self.initial or 0.0))

    def _reach(self) -> float:
        """The amount above the average to which a single value is clipped before it is averaged."""
        if self.cap is not None:
            return REACH
        if self.initial is None:
            return math.inf
        learned = self.progress if self.trend.fell else abs(self.initial)
        return max(learned, OUTLYING * (self.trend.scatter.value or 0.0))

    def state_dict(self) -> dict[str, Any]:
        """The state on which later answers depend, as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        trend = state["trend"]
        averages = {name: Smoothed(**trend[name]) for name in ("average", "scatter")}
        self.trend = Trend(**(trend | averages))
        self.smoothed = Smoothed(**state["smoothed"])
        self.first = list(state["first"])
        self.step, self.best_scatter = state["step"], state["best_scatter"]
        self.best, self.best_step = state["best"], state["best_step"]


def cap_of(vocabulary: int | None) -> float | None:
    """The loss of a uniform model, ln(vocabulary); None without a vocabulary or for a single class, where it is 0."""
    return None if vocabulary is None or vocabulary < 2 else math.log(vocabulary)
