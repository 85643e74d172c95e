"""The one smoothing of the loss that every collapse rule and the gap to the baseline share.

Batch losses have heavy tails: raw values trip any threshold sooner or later, and an average that one wild step
can drag away trips it for long after.  So the smoothing is an exponential average that halves a step's weight
every `HALF_LIFE` steps, corrected for its start, in which one step counts as at most `REACH` nats above the average
so far; below it zero is bound enough, and a start from hundreds of nats must be left quickly.  NaN and inf are not
averaged at all; the rules judge them apart.  Where only every n-th step is reported the half-life is that many
reports: fewer batches are not less noisy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HALF_LIFE = 10  # steps
REACH = 3.0  # nats; one step lifts a settled average by at most 0.067 of this
_KEEP = 0.5 ** (1 / HALF_LIFE)
START_STEPS = 5  # finite losses whose median is the initial loss


@dataclass
class Smoothed:
    """Exponential average over the finite values given to it; `value` is None before the first."""

    total: float = 0.0
    weight: float = 0.0  # 1 - 2^(-values seen / HALF_LIFE)

    def update(self, value: float) -> None:
        if not math.isfinite(value):
            return
        if self.value is not None:
            value = min(value, self.value + REACH)
        self.total = _KEEP * self.total + (1 - _KEEP) * value
        self.weight = _KEEP * self.weight + (1 - _KEEP)

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight > 0 else None

    @property
    def settled(self) -> bool:
        """Whether the average stands on two half-lives of values and not on a few noisy batches."""
        return self.weight >= 0.75 - 1e-9


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
        if not math.isfinite(loss):
            return
        self.smoothed.update(loss)
        value = self.smoothed.value
        if len(self.first) < START_STEPS:
            self.first.append(loss)
        if value is not None and self.smoothed.settled and (self.best is None or value < self.best):
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

    `baseline` maps step -> training loss and may still be growing.  Both curves are smoothed alike, over the steps
    that the run reports, so a run that follows the baseline exactly has a gap of exactly 0.
    """

    def __init__(self, baseline: Mapping[int, float]) -> None:
        self._baseline = baseline
        self._smoothed = Smoothed()
        self._baseline_smoothed = Smoothed()
        self._step: int | None = None
        self._pending: list[int] = []  # steps of the run that the smoothed baseline has not got yet

    def update(self, step: int, loss: float) -> float | None:
        """Smoothed loss minus smoothed baseline at this step, in nats.

        None where there is nothing to compare: the baseline has not (yet) got this step, one of the two losses
        is not finite, or the step was seen before.
        """
        if self._step is not None and step <= self._step:
            return None
        self._step = step
        self._smoothed.update(loss)
        self._pending.append(step)
        if step not in self._baseline:
            return None
        for earlier in self._pending:
            if earlier in self._baseline:
                self._baseline_smoothed.update(self._baseline[earlier])
        self._pending = []
        own, other = self._smoothed.value, self._baseline_smoothed.value
        if own is None or other is None or not math.isfinite(loss) or not math.isfinite(self._baseline[step]):
            return None
        return own - other

    def state_dict(self) -> dict[str, Any]:
        """What later gaps depend on besides the baseline, in strict JSON."""
        return {
            "smoothed": asdict(self._smoothed),
            "baseline_smoothed": asdict(self._baseline_smoothed),
            "step": self._step,
            "pending": list(self._pending),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._smoothed = Smoothed(**state["smoothed"])
        self._baseline_smoothed = Smoothed(**state["baseline_smoothed"])
        self._step = state["step"]
        self._pending = list(state["pending"])
