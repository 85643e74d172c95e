"""Rules that judge a run by its training loss: it is not finite, rose far above its best, or trails the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from altgrad.collapse.course import LossCourse
from altgrad.collapse.rule import Excursion, Observation
from altgrad.collapse.smoothing import Smoothed, pace_of
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

MOSTLY = 0.55  # average share of bad steps that is judged: one half, and a reserve for its fluctuation
_SKIPS_HALF_LIFE = 40  # ticks
_OBVIOUS = 3.0  # multiple of the batches' scatter that a rise or a gap must reach if the unit is unknown


@dataclass
class BadSteps:
    """The current series of bad steps (`since` its first, `length` of them), and the average share of bad steps."""

    since: int | None = None
    length: int = 0
    share: Smoothed = field(default_factory=Smoothed)

    def __post_init__(self) -> None:
        if isinstance(self.share, dict):  # restored from JSON
            self.share = Smoothed(**self.share)


class NonFinite:
    """NaN or inf in the loss or the gradients at `non_finite_patience` reported steps in a row, or at most steps.

    The optimizer skips a non-finite step, so a run with mostly such steps hardly trains, even if every tenth step looks
    normal.  The patience does not grow with the length of the run: a NaN is a fact, not a trend.
    Example: a run whose steps are all bad from step 60 on is judged at step 64.  If three of every four steps are bad,
    it is judged after about 80 steps (in long runs after a sixth of the run); if one of four is bad, never.
    """

    name: ClassVar[str] = "non_finite"

    def __init__(self, config: TrainConfig) -> None:
        self._patience = config.non_finite_patience
        self.memory = BadSteps()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if steps in a row were not finite for the patience, or if most of the recent steps were not."""
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
            detail = f"at {share:.0%} of the recent steps, which did not move the weights"
        else:
            return None
        detail = f"{metric} {value:.4g}; loss or gradients not finite {detail}"
        return Verdict(seen.step, self.name, metric, float(value), limit, detail)

    def begin_anew(self, step: int) -> None:
        """See `Rule`."""
        self.memory = BadSteps()


def _not_finite(seen: Observation) -> tuple[str, float, float] | None:
    """(metric, value, limit) of the first non-finite quantity; None if the loss and the gradients are finite.

    The norm is tested besides the gradients, because it may overflow although every gradient is finite.
    """
    for metric in ("loss", "gradient_norm"):
        value = seen.record.get(metric, 0.0)
        if metric == "gradient_norm" and seen.record.get("non_finite_gradients", 0.0) > 0:
            return "non_finite_gradients", seen.record["non_finite_gradients"], 0.0
        if not math.isfinite(value):
            return metric, value, math.inf
    return None


class Diverged:
    """The smoothed loss is `diverged_margin` above its best for `diverged_patience` steps without recovering.

    If the best is below ln(vocabulary), the limit is at most halfway between the two, so that a model is also found
    that had learned less than the margin and fell back to uniform.  This does not apply before the model has learned.
    Example, 256 classes: the best is 2.45 at step 200, so the limit is 2.95; the loss is above it from step 212 on and
    at 5.5 from step 240 on: the verdict comes at step 291, the 80th step above the limit.

    If the unit is unknown, the limit lies above the best by a sixth (0.5 nats of 3) of the progress, but by at least
    three times the scatter of the batches and a twelfth of the initial loss: a smaller rise may be a fluctuation.
    Before the loss has fallen at all, it must double.  Example: a squared error went from 0.09 to 0.004 with a scatter
    of 0.001: the limit is 0.004 + 0.086 / 6 = 0.018.
    """

    name: ClassVar[str] = "diverged"

    def __init__(self, config: TrainConfig) -> None:
        self._margin, self._learned = config.diverged_margin, config.never_learned_margin
        self._patience = config.diverged_patience * pace_of(config.max_steps)
        self.memory = Excursion()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if the smoothed loss has been above the limit for the patience."""
        best, smoothed = seen.course.best, seen.smoothed
        if best is None or smoothed is None or seen.finite("loss") is None:
            return None
        limit = rise_limit(seen.course, best, self._margin, self._learned)
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

    def begin_anew(self, step: int) -> None:
        """See `Rule`."""
        self.memory.begin_anew()


def rise_limit(course: LossCourse, best: float, margin: float, learned: float) -> float:
    """The loss above which a run that had the loss `best` has diverged, see `Diverged`; margins in nats."""
    limit = best + course.least_rise(margin, _OBVIOUS)
    if course.cap is not None and best < course.cap - course.margin(learned):
        limit = min(limit, (best + course.cap) / 2)
    return limit


class GapToBaseline:
    """The smoothed loss is `gap_limit` behind the baseline for `gap_patience` steps after warm-up without catching up.

    Both runs see the same batches from the same weights, so that their losses differ by little noise, and a limit of a
    tenth of what a run usually learns is far above it.  A format that only learns a little later is behind by more for
    a while, but catches up: the count restarts whenever the gap has shrunk by 6 %.
    Example, 256 classes: a run that is 0.4 nats behind from step 51 to step 110 is judged at step 110; a gap that
    closes by 6 % within every 60 steps is never judged.

    If the unit is unknown, the limit is a tenth (0.3 nats of 3) of the progress of the baseline, which started with the
    same weights as this run.  Example: both start at 0.09 and the baseline has come to 0.006: the limit is 0.0084.  It
    is at least three times the scatter of the batches, and no gap is judged while the baseline's progress is less.
    """

    name: ClassVar[str] = "gap_to_baseline"

    def __init__(self, config: TrainConfig) -> None:
        self._limit = config.gap_limit
        self._patience = config.gap_patience * pace_of(config.max_steps)
        self._warmup = config.warmup_steps
        self.memory = Excursion()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if the gap, measured at this step, has been above the limit for the patience."""
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

    def begin_anew(self, step: int) -> None:
        """See `Rule`."""
        self.memory.begin_anew()

    def _allowed(self, course: LossCourse, gap: float) -> float | None:
        if course.cap is not None:
            return course.margin(self._limit)
        if course.initial is None or course.smoothed.value is None:
            return None
        learned = course.initial - (course.smoothed.value - gap)
        if learned <= _OBVIOUS * (course.trend.scatter.value or 0.0):
            return None
        return course.margin(self._limit, _OBVIOUS, learned)
