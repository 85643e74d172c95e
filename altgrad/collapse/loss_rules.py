"""Rules that judge a run by its loss: not finite, far above its best, never below its start, behind the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from altgrad.collapse.rule import Excursion, Observation
from altgrad.results import Verdict
from altgrad.training.config import TrainConfig

LEARNING_STEPS = 50  # steps at full learning rate before a run can be said not to learn
TRAINED_START = 0.5  # of ln(vocabulary): a run that starts below this starts from a trained model


@dataclass
class Series:
    """An uninterrupted series of bad steps: the first, and how many were reported."""

    since: int | None = None
    length: int = 0


class NonFinite:
    """NaN or inf in the loss or the gradients at `non_finite_patience` reported steps in a row."""

    name: ClassVar[str] = "non_finite"

    def __init__(self, config: TrainConfig) -> None:
        self._patience = config.non_finite_patience
        self.memory = Series()

    def judge(self, seen: Observation) -> Verdict | None:
        loss = seen.record["loss"]
        share = seen.record.get("non_finite_gradients", 0.0)
        if math.isfinite(loss) and share == 0:
            self.memory = Series()
            return None
        if self.memory.since is None:
            self.memory.since = seen.step
        self.memory.length += 1
        if self.memory.length < self._patience:
            return None
        metric, value, limit = ("non_finite_gradients", share, 0.0) if math.isfinite(loss) else ("loss", loss, math.inf)
        detail = (
            f"{metric} {value:.4g}; loss or gradients not finite at {self.memory.length} steps in a row since step "
            f"{self.memory.since}"
        )
        return Verdict(seen.step, self.name, metric, float(value), limit, detail)


class Diverged:
    """Smoothed loss `diverged_margin` above its best for `diverged_patience` steps without recovering.

    Below ln(vocabulary) the limit is at most halfway from the best to it, so that a model that had learned less
    than the margin and fell to uniform is found too.  A model that had learned nothing has nothing to lose there.
    """

    name: ClassVar[str] = "diverged"

    def __init__(self, config: TrainConfig) -> None:
        self._margin = config.diverged_margin
        self._patience = config.diverged_patience
        self._learned = config.never_learned_margin
        self.memory = Excursion()

    def judge(self, seen: Observation) -> Verdict | None:
        best, smoothed = seen.course.best, seen.smoothed
        if best is None or smoothed is None or seen.finite("loss") is None:
            return None
        limit = best + self._margin
        if seen.cap is not None and best < seen.cap - self._learned:
            limit = min(limit, (best + seen.cap) / 2)
        steps = self.memory.steps_beyond(seen.step, smoothed, limit, origin=best)
        if steps < self._patience:
            return None
        detail = (
            f"smoothed loss above {limit:.3f} since step {self.memory.since}, no recovery for {steps} steps; "
            f"its best was {best:.3f} at step {seen.course.best_step}"
        )
        if seen.cap is not None:
            detail += f"; a uniform model has {seen.cap:.3f}"
        return Verdict(seen.step, self.name, "loss", smoothed, limit, detail)


@dataclass
class NoMemory:
    """A rule that looks at the present alone."""


class NeverLearned:
    """The loss never left its start, `never_learned_fraction` into the run.

    A start above ln(vocabulary) is judged as ln(vocabulary): to fall to uniform is not learning.  A run that
    starts far below it starts from a trained model, which may have little left to learn.
    """

    name: ClassVar[str] = "never_learned"

    def __init__(self, config: TrainConfig) -> None:
        self._margin = config.never_learned_margin
        fraction = math.ceil(config.never_learned_fraction * config.max_steps)
        self._deadline = max(fraction, config.warmup_steps + LEARNING_STEPS)
        self.memory = NoMemory()

    def judge(self, seen: Observation) -> Verdict | None:
        start, best = seen.course.initial, seen.course.best
        if start is None or best is None or seen.step < self._deadline:
            return None
        if seen.cap is not None:
            if start < TRAINED_START * seen.cap:
                return None
            start = min(start, seen.cap)
        limit = start - self._margin
        if best <= limit:
            return None
        detail = (
            f"best smoothed loss {best:.3f} (step {seen.course.best_step}) is within {self._margin:g} nats of the "
            f"start, {start:.3f}, after {seen.step} steps"
        )
        return Verdict(seen.step, self.name, "loss", best, limit, detail)


class GapToBaseline:
    """Smoothed loss `gap_limit` behind the baseline for `gap_patience` steps after warm-up without catching up."""

    name: ClassVar[str] = "gap_to_baseline"

    def __init__(self, config: TrainConfig) -> None:
        self._limit = config.gap_limit
        self._patience = config.gap_patience
        self._warmup = config.warmup_steps
        self.memory = Excursion()

    def judge(self, seen: Observation) -> Verdict | None:
        gap = seen.finite("gap_to_baseline")
        if gap is None or seen.step <= self._warmup:
            return None
        steps = self.memory.steps_beyond(seen.step, gap, self._limit, origin=0.0)
        if steps < self._patience:
            return None
        detail = (
            f"more than {self._limit:g} nats behind the baseline since step {self.memory.since}, not catching up "
            f"for {steps} steps"
        )
        return Verdict(seen.step, self.name, "gap_to_baseline", gap, self._limit, detail)
