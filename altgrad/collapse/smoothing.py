"""The one smoothing of the loss that every collapse rule and the gap to the baseline share.

Batch losses have heavy tails: raw values trip any threshold sooner or later, and an average that one wild step
can drag away trips it for long after.  So the smoothing is an exponential average that halves a step's weight
every `HALF_LIFE` steps, corrected for its start, in which one step counts as at most `REACH` nats away from the
average so far.  NaN and inf are not averaged at all; the rules judge them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HALF_LIFE = 10.0  # steps
REACH = 3.0  # nats; at a steady level one step moves the average by at most 0.067 of this
SETTLED = 2 * HALF_LIFE  # steps before an average counts as more than a few noisy batches
START_STEPS = 5  # finite losses whose median is the initial loss


@dataclass
class Smoothed:
    """Exponential average over steps; gaps between steps decay it as if the steps had been there."""

    total: float = 0.0
    weight: float = 0.0  # 1 - 2^(-steps seen / HALF_LIFE)
    step: int | None = None

    def update(self, step: int, value: float) -> float | None:
        """Average up to this step; None while no finite value was seen.  Steps must rise."""
        if not math.isfinite(value):
            return self.value
        if self.value is not None:
            value = min(max(value, self.value - REACH), self.value + REACH)
        keep = 0.5 ** ((1 if self.step is None else step - self.step) / HALF_LIFE)
        self.total = keep * self.total + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)
        self.step = step
        return self.value

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight > 0 else None

    @property
    def settled(self) -> bool:
        return self.weight >= 1 - 0.5 ** (SETTLED / HALF_LIFE) - 1e-9


@dataclass
class LossCourse:
    """What the rules need to know of the loss so far: its start, its average and the average's best.

    The best counts from where the average is settled: one lucky batch at the start is no achievement to lose.
    """

    smoothed: Smoothed = field(default_factory=Smoothed)
    first: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int | None = None

    def update(self, step: int, loss: float) -> None:
        """Add a step's loss (nats, may be NaN or inf)."""
        value = self.smoothed.update(step, loss)
        if not math.isfinite(loss) or value is None:
            return
        if len(self.first) < START_STEPS:
            self.first.append(loss)
        if self.smoothed.settled and (self.best is None or value < self.best):
            self.best, self.best_step = value, step

    @property
    def initial(self) -> float | None:
        """Median of the first finite losses; None until there are enough of them."""
        return sorted(self.first)[START_STEPS // 2] if len(self.first) == START_STEPS else None

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.smoothed = Smoothed(**state["smoothed"])
        self.first = list(state["first"])
        self.best, self.best_step = state["best"], state["best_step"]


class BaselineGap:
    """How far a run's smoothed loss lies behind that of the baseline run, step by step.

    `baseline` maps step -> training loss and may still be growing.  Both curves are smoothed alike from their
    first step, so a format that follows the baseline exactly has a gap of exactly 0.
    """

    def __init__(self, baseline: Mapping[int, float]) -> None:
        self._baseline = baseline
        self._baseline_smoothed = Smoothed()
        self._baseline_step = -1  # the baseline is smoothed up to here
        self._smoothed = Smoothed()

    def update(self, step: int, loss: float) -> float | None:
        """Smoothed loss minus smoothed baseline at this step, in nats.

        None where there is nothing to compare: the baseline has not (yet) got this step, one of the two losses
        is not finite, or the step was seen before.
        """
        if self._smoothed.step is not None and step <= self._smoothed.step:
            return None
        own = self._smoothed.update(step, loss)
        if step not in self._baseline:
            return None
        for earlier in range(self._baseline_step + 1, step + 1):
            if earlier in self._baseline:
                self._baseline_smoothed.update(earlier, self._baseline[earlier])
        self._baseline_step = step
        other = self._baseline_smoothed.value
        if own is None or other is None or not math.isfinite(loss) or not math.isfinite(self._baseline[step]):
            return None
        return own - other

    def state_dict(self) -> dict[str, Any]:
        """The run's side; the baseline's is read again from the baseline."""
        return asdict(self._smoothed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._smoothed = Smoothed(**state)
