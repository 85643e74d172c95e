"""What the rules know of the loss so far, and how much of a loss is much.

The cross-entropy of a known vocabulary is in nats, and its margins are nats: 0.15 nats below ln(256) = 5.545 is
learning.  A loss of unknown unit (a squared error, a negative log-likelihood, ...) has no such scale, nor a zero: 0.15
is more than a regression that starts at 0.09 can ever learn, and nothing for one that starts at 4,000.  There a margin
of m nats means m / 3 of what the run has learned so far, because the runs that the margins were made for had learned
about 3 nats: half a nat is a sixth of the progress, 0.014 for a regression that went from 0.09 to 0.004.  Progress that
is smaller than the scatter of the batches is none.  Nothing here changes when every loss is multiplied by a constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from altgrad.collapse.smoothing import REACH, Smoothed

START_STEPS = 5  # finite losses whose median is the initial loss
USUAL_CAP = math.log(256)  # nats; a smaller vocabulary has less to learn, and its margins shrink with it
USUAL_PROGRESS = 3.0  # nats that a run of the usual vocabulary learns
RESOLUTION = 1e-6  # of the loss: what float32 batches can hardly tell apart
_SLOW = 25  # ticks, half-life of the slow average and of the scatter
_SIGMA = 1.25  # standard deviations of a normal distribution in its mean absolute deviation
_SURE = 3.5  # standard errors to either side within which two averages count as equal


@dataclass
class Trend:
    """A slow average with its standard error, and whether it has ever fallen by more than chance explains.

    Each average is the interval of `_SURE` standard errors around it; `height` is the highest lower end so far.  The
    loss has fallen once an upper end lies below it.  Example: batches scatter by 0.1 around 2.0; an average over the
    first 20 ticks is 2.0 +- 0.09, later ones +- 0.05: a fall to 1.8 is one, a fall to 1.9 may be chance.
    """

    average: Smoothed = field(default_factory=Smoothed)
    scatter: Smoothed = field(default_factory=Smoothed)  # mean absolute deviation from the smoothed loss
    squares: float = 0.0  # sum of squared weights: (squares / weight^2) of a value's variance is the average's
    height: float | None = None
    fell: bool = False

    def update(self, loss: float, smoothed: float | None, ticks: float, reach: float) -> None:
        self.average.update(loss, ticks, reach, _SLOW)
        keep = 0.5 ** (ticks / _SLOW)
        # the batches of one tick count as one: their noise need not be independent
        self.squares = keep**2 * self.squares + (1 - keep) ** 2 / ticks
        if smoothed is not None:
            self.scatter.update(min(abs(loss - smoothed), reach), ticks, math.inf, _SLOW)

    def look(self) -> None:
        """Compare with what was before."""
        margin, value = self.margin, self.average.value
        if margin is None or value is None:
            return
        if self.height is not None and value + margin < self.height:
            self.fell = True
        self.height = value - margin if self.height is None else max(self.height, value - margin)

    @property
    def margin(self) -> float | None:
        """Half the width of the interval around the average."""
        value, scatter = self.average.value, self.scatter.value
        if value is None or scatter is None:
            return None
        error = _SIGMA * scatter * math.sqrt(self.squares) / self.average.weight
        return max(_SURE * error, RESOLUTION * abs(value))


@dataclass
class LossCourse:
    """The loss's start, its average, the average's best, and its scatter.

    The best counts from where the average is settled: one lucky batch at the start is no achievement to lose.
    `pace`: steps of a tick.  `cap`: ln(vocabulary), the loss of a uniform model; None where the unit is unknown.
    Losses of exactly 0 before any other say nothing (a masked batch, a term that is still switched off).
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
        """Ticks between the last record and this one, at most 1."""
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
        """Median of the first finite losses; None until there are enough of them."""
        return sorted(self.first)[START_STEPS // 2] if len(self.first) == START_STEPS else None

    @property
    def progress(self) -> float:
        """What the run has learned so far, in units of its loss."""
        return 0.0 if self.initial is None or self.best is None else max(0.0, self.initial - self.best)

    @property
    def unit_word(self) -> str:
        """` nats` after a number, nothing where the unit is unknown."""
        return "" if self.cap is None else " nats"

    def margin(self, nats: float, scatters: float = 1.0, progress: float | None = None) -> float:
        """How much of this loss a margin of `nats` is.

        256 classes or more: `nats` themselves.  2 classes, whose uniform loss is 0.693: an eighth of them.  Unknown
        unit: `nats` / 3 of `progress`, or of the run's own, and at least `scatters` times the scatter of the batches.
        """
        if self.cap is not None:
            return nats * min(1.0, self.cap / USUAL_CAP)
        learned = self.progress if progress is None else progress
        scatter = self.best_scatter if self.best is not None else self.trend.scatter.value or 0.0
        return max(nats / USUAL_PROGRESS * learned, scatters * scatter, RESOLUTION * abs(self.initial or 0.0))

    def _reach(self) -> float:
        """How far above the average one value may count."""
        if self.cap is not None:
            return REACH
        if self.initial is None:
            return math.inf
        learned = self.progress if self.trend.fell else abs(self.initial)
        return max(learned, 8 * (self.trend.scatter.value or 0.0))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        trend = state["trend"]
        averages = {name: Smoothed(**trend[name]) for name in ("average", "scatter")}
        self.trend = Trend(**(trend | averages))
        self.smoothed = Smoothed(**state["smoothed"])
        self.first = list(state["first"])
        self.step, self.best_scatter = state["step"], state["best_scatter"]
        self.best, self.best_step = state["best"], state["best_step"]
