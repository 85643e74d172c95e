"""Rules that judge a run by its loss: not finite, far above its best, never below its start, behind the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from altgrad.collapse.course import LossCourse
from altgrad.collapse.rule import Excursion, Observation
from altgrad.collapse.smoothing import Smoothed, pace_of
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

LEARNING_STEPS = 50  # steps at full learning rate before a run can be said not to learn
TRAINED_START = 0.5  # of ln(vocabulary): a run that starts below this starts from a trained model
MOSTLY = 0.55  # share of bad steps: more than half, and the wobble of the average
_SKIPS_HALF_LIFE = 40  # ticks
_BUMP = 1 / 12  # of the initial loss: where the unit is unknown, a rise by less is no divergence
_OBVIOUS = 3.0  # times the scatter of the batches that a loss must have risen, or a gap must be, where nats are unknown


@dataclass
class BadSteps:
    """The uninterrupted series of bad steps (its first, and how many were reported), and their share of late."""

    since: int | None = None
    length: int = 0
    share: Smoothed = field(default_factory=Smoothed)

    def __post_init__(self) -> None:
        if isinstance(self.share, dict):  # as JSON has it
            self.share = Smoothed(**self.share)


class NonFinite:
    """NaN or inf in the loss or the gradients at `non_finite_patience` reported steps in a row, or at most steps.

    A non-finite step does not move the optimizer, so a run that skips most of its steps hardly trains, although every
    tenth step may look well.  Patience is in steps whatever the length of the run: a NaN is a fact, not a trend.
    Example: bad from step 60 on is judged at step 64; three bad steps in every four are judged after some 80 steps (a
    sixth of a long run), one in four never.
    """

    name: ClassVar[str] = "non_finite"

    def __init__(self, config: TrainConfig) -> None:
        self._patience = config.non_finite_patience
        self.memory = BadSteps()

    def judge(self, seen: Observation) -> Verdict | None:
        found = _not_finite(seen)
        self.memory.share.update(float(found is not None), seen.ticks, half_life=_SKIPS_HALF_LIFE)
        if found is None:
            self.memory.since, self.memory.length = None, 0
            return None
        if self.memory.since is None:
            self.memory.since = seen.step
        self.memory.length += 1
        share = self.memory.share.value or 0.0
        metric, value, limit = found
        if self.memory.length >= self._patience:
            detail = f"at {self.memory.length} steps in a row since step {self.memory.since}"
        elif self.memory.share.settled and share > MOSTLY:
            detail = f"at {share:.0%} of the steps of late, which did not move the weights"
        else:
            return None
        detail = f"{metric} {value:.4g}; loss or gradients not finite {detail}"
        return Verdict(seen.step, self.name, metric, float(value), limit, detail)


def _not_finite(seen: Observation) -> tuple[str, float, float] | None:
    """Metric, value and limit where something is not finite; a norm may overflow where no gradient does."""
    for metric in ("loss", "gradient_norm"):
        value = seen.record.get(metric, 0.0)
        if metric == "gradient_norm" and seen.record.get("non_finite_gradients", 0.0) > 0:
            return "non_finite_gradients", seen.record["non_finite_gradients"], 0.0
        if not math.isfinite(value):
            return metric, value, math.inf
    return None


class Diverged:
    """Smoothed loss `diverged_margin` above its best for `diverged_patience` steps without recovering.

    Below ln(vocabulary) the limit is at most halfway from the best to it, so that a model that had learned less
    than the margin and fell to uniform is found too.  A model that had learned nothing has nothing to lose there.
    Example, 256 classes: best 2.45 at step 200, limit 2.95; above it from step 212 on, at 5.5 by 240: verdict at 291.

    Where the unit is unknown the limit is a sixth (0.5 nats of 3) of what had been learned above the best, at least
    three times the scatter of the batches and a twelfth of the initial loss; less is not told from
    a bump.  Before anything was learned the loss must double.  Example: a squared error went from 0.09 to 0.004 with a
    scatter of 0.001: limit 0.004 + 0.086 / 6 = 0.018.
    """

    name: ClassVar[str] = "diverged"

    def __init__(self, config: TrainConfig) -> None:
        self._margin = config.diverged_margin
        self._patience = config.diverged_patience * pace_of(config.max_steps)
        self._learned = config.never_learned_margin
        self.memory = Excursion()

    def judge(self, seen: Observation) -> Verdict | None:
        best, smoothed = seen.course.best, seen.smoothed
        if best is None or smoothed is None or seen.finite("loss") is None:
            return None
        limit = self._limit(seen.course, best)
        steps = self.memory.steps_beyond(seen.step, smoothed, limit, origin=best)
        if steps < self._patience:
            return None
        detail = (
            f"smoothed loss above {limit:.4g} since step {self.memory.since}, no recovery for {steps} steps; "
            f"its best was {best:.4g} at step {seen.course.best_step}"
        )
        if seen.cap is not None:
            detail += f"; a uniform model has {seen.cap:.3f}"
        return Verdict(seen.step, self.name, "loss", smoothed, limit, detail)

    def _limit(self, course: LossCourse, best: float) -> float:
        limit = best + course.margin(self._margin, _OBVIOUS)
        if course.cap is None:
            return max(limit, best + (_BUMP if course.trend.fell else 1.0) * abs(course.initial or 0.0))
        if best < course.cap - course.margin(self._learned):
            limit = min(limit, (best + course.cap) / 2)
        return limit


@dataclass
class NoMemory:
    """A rule that looks at the present alone."""


class NeverLearned:
    """The loss never left its start, `never_learned_fraction` into the run.

    A start above ln(vocabulary) is judged as ln(vocabulary): to fall to uniform is not learning.  A run that
    starts far below it starts from a trained model, which may have little left to learn.
    Example, 256 classes, 500 steps: a best of 5.48 at step 200 is not 0.15 nats below 5.545: verdict.

    Where the unit is unknown a run has not learned that has at no time fallen by more than chance explains (see
    `course.Trend`), from whatever height.  Example: losses of 0.09 that scatter by 0.01: a slow average that is still
    above 0.085 at step 200 is no fall; a regression that went from 0.09 to 0.004 has learned.
    """

    name: ClassVar[str] = "never_learned"

    def __init__(self, config: TrainConfig) -> None:
        self._margin = config.never_learned_margin
        fraction = math.ceil(config.never_learned_fraction * config.max_steps)
        self._deadline = max(fraction, config.warmup_steps + LEARNING_STEPS * pace_of(config.max_steps))
        self.memory = NoMemory()

    def judge(self, seen: Observation) -> Verdict | None:
        course = seen.course
        start, best = course.initial, course.best
        if start is None or best is None or seen.step < self._deadline:
            return None
        if course.cap is None:
            return self._never_fell(seen)
        if start < TRAINED_START * course.cap:
            return None
        start, margin = min(start, course.cap), course.margin(self._margin)
        limit = start - margin
        if best <= limit:
            return None
        detail = (
            f"best smoothed loss {best:.3f} (step {course.best_step}) is within {margin:.3g} nats of the "
            f"start, {start:.3f}, after {seen.step} steps"
        )
        return Verdict(seen.step, self.name, "loss", best, limit, detail)

    def _never_fell(self, seen: Observation) -> Verdict | None:
        trend = seen.course.trend
        value, margin = trend.average.value, trend.margin
        if trend.fell or trend.height is None or value is None or margin is None:
            return None
        limit = trend.height - margin
        detail = (
            f"the average loss, {value:.4g}, has in {seen.step} steps nowhere fallen by more than the scatter of the "
            f"batches explains; below {limit:.4g} it would have"
        )
        return Verdict(seen.step, self.name, "loss", value, limit, detail)


class GapToBaseline:
    """Smoothed loss `gap_limit` behind the baseline for `gap_patience` steps after warm-up without catching up.

    Example, 256 classes: 1.3 nats behind from step 51 to step 210: verdict at 210; a gap that closes by 6 % within
    every 160 steps is never judged.

    Where the unit is unknown the limit is a third (1 nat of 3) of what the baseline itself has learned, which started
    where this run did: with the same weights.  Example: both start at 0.09, the baseline has come to 0.006, the limit
    is 0.028.  No gap is judged while the baseline has learned less than three times the scatter of the batches.
    """

    name: ClassVar[str] = "gap_to_baseline"

    def __init__(self, config: TrainConfig) -> None:
        self._limit = config.gap_limit
        self._patience = config.gap_patience * pace_of(config.max_steps)
        self._warmup = config.warmup_steps
        self.memory = Excursion()

    def judge(self, seen: Observation) -> Verdict | None:
        gap = seen.finite("gap_to_baseline")
        if gap is None or seen.step <= self._warmup:
            return None
        limit = self._allowed(seen.course, gap)
        if limit is None:
            return None
        steps = self.memory.steps_beyond(seen.step, gap, limit, origin=0.0)
        if steps < self._patience:
            return None
        detail = (
            f"more than {limit:.3g}{seen.course.unit_word} behind the baseline since step {self.memory.since}, not "
            f"catching up for {steps} steps"
        )
        return Verdict(seen.step, self.name, "gap_to_baseline", gap, limit, detail)

    def _allowed(self, course: LossCourse, gap: float) -> float | None:
        if course.cap is not None:
            return course.margin(self._limit)
        if course.initial is None or course.smoothed.value is None:
            return None
        learned = course.initial - (course.smoothed.value - gap)
        if learned <= _OBVIOUS * (course.trend.scatter.value or 0.0):
            return None
        return course.margin(self._limit, _OBVIOUS, learned)
