"""Rules that ask the held-out loss besides the training loss: both rose, neither ever fell, neither shows context."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from altgrad.collapse.course import USUAL_PROGRESS, LossCourse
from altgrad.collapse.loss_rules import rise_limit
from altgrad.collapse.rule import Excursion, Observation
from altgrad.collapse.smoothing import pace_of
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

LEARNING_STEPS = 50  # steps at full learning rate before `never_learned` and `no_context` judge
TRAINED_START = 0.5  # share of ln(vocabulary): a run that starts below it starts from a trained model
_IN_A_ROW = 2  # held-out losses that must be lower before they say that the run has learned
STILL_FALLING = 100  # ticks within which a fall by `stalled_slope` shows that a run is still learning
_RECOVERY = 0.15  # share of its height above the best that counts as recovering: the loss is seen rarely, not smoothed


@dataclass
class HeldOut:
    """The lowest held-out loss so far and its step, and the excursion above it."""

    best: float | None = None
    best_step: int | None = None
    excursion: Excursion = field(default_factory=Excursion)

    def __post_init__(self) -> None:
        if isinstance(self.excursion, dict):  # restored from JSON
            self.excursion = Excursion(**self.excursion)


class Degraded:
    """The held-out loss is half of `diverged_margin` above its best for `diverged_patience` steps without recovering.

    It finds smaller rises than `diverged`: the held-out batches are always the same, so that their loss has no scatter.
    It is seen every `eval_interval` steps, and at least two measurements in a row must be above the limit, which is
    otherwise that of `diverged`.  Recovering means losing 15 % of the height above the best.

    The smoothed training loss must be above its own best too, by half as much as the limit asks of the held-out loss.
    A run whose training loss goes on falling memorises its batches: no arithmetic has failed, and BF16 does the same.
    Unless BF16 does not: where the training loss is below that of the baseline by as much as the limit asks of the
    held-out loss, the run memorises batches that the baseline did not get, since no format learns so much faster from
    the same ones.  Then a rise by half as much is enough.

    Example, 256 classes, measured every 20 steps: both losses are 2.6 at step 100 and rise from there by 0.1 per
    measurement.  It is above 2.85 from step 160 on: the verdict comes at step 240, the 81st step.
    """

    name: ClassVar[str] = "degraded"

    def __init__(self, config: TrainConfig) -> None:
        self._margin, self._learned = config.diverged_margin / 2, config.never_learned_margin
        self._patience = config.diverged_patience * pace_of(config.max_steps)
        self.memory = HeldOut()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if the held-out loss, measured at this step, has been above the limit for the patience."""
        loss, memory = seen.finite("validation_loss"), self.memory
        if loss is None:
            return None
        if memory.best is None or loss < memory.best:
            memory.best, memory.best_step = loss, seen.step
        gap, excursion = seen.finite("gap_to_baseline"), memory.excursion
        is_ahead = gap is not None and gap <= -seen.course.margin(self._margin)
        margin = self._margin / 2 if is_ahead else self._margin
        limit = rise_limit(seen.course, memory.best, margin, self._learned)
        if not is_ahead and self._memorises(seen):
            excursion.since = None
            return None
        steps = excursion.steps_beyond(seen.step, loss, limit, origin=memory.best, recovery=_RECOVERY)
        if steps < max(self._patience, 2):  # the first measurement above the limit counts as one step
            return None
        detail = (
            f"held-out loss above {limit:.4g} since step {excursion.since}, no recovery for {steps} steps; its best "
            f"was {memory.best:.4g} at step {memory.best_step}"
        )
        return Verdict(seen.step, self.name, "validation_loss", loss, limit, detail)

    def begin_anew(self, step: int) -> None:
        """See `Rule`."""
        self.memory.excursion.begin_anew()

    def _memorises(self, seen: Observation) -> bool:
        """Whether the training loss is near its best, so that only the held-out loss has risen."""
        best, smoothed = seen.course.best, seen.smoothed
        if best is None or smoothed is None:
            return True
        return smoothed < best + seen.course.margin(self._margin / 2)


def _deadline(config: TrainConfig, fraction: float) -> float:
    """The step from which on a run is asked what it has learned: a share of it, and some steps of full rate."""
    begin = config.start_step
    share = begin + math.ceil(fraction * (config.max_steps - begin))
    return max(share, max(begin, config.warmup_steps) + LEARNING_STEPS * pace_of(config.max_steps))


@dataclass
class Enabled:
    """`since`: the step at whose end an act may have enabled the run to learn; None without one.

    `first`: the first held-out loss; `low`: how many of the latest are below the limit; `fell`: two in a row ever were.
    """

    since: int | None = None
    first: float | None = None
    low: int = 0
    fell: bool = False


class NeverLearned:
    """After `never_learned_fraction` of the run, the best smoothed loss is not `never_learned_margin` below the start.

    A start above ln(vocabulary) counts as ln(vocabulary), because falling to the loss of a uniform model is not
    learning.  A run that starts below half of ln(vocabulary) is not judged: it starts from a trained model, which may
    have little left to learn.  A run that starts from given weights (`start_from`) is judged only if it starts at the
    loss of a uniform model; in a loss of unknown unit it is not judged.  If it goes on after the step of those weights
    (`start_keeps: [step]`), the share counts from there.  After a rescue a run has as many steps to learn as after
    warm-up.
    Example, 256 classes, 500 steps: the best is 5.48 at step 200, which is not 0.15 nats below 5.545: verdict.

    If the unit is unknown, the run is judged if its loss has at no time fallen by more than chance explains (see
    `course.Trend`).  Example: the losses are 0.09 with a scatter of 0.01; a slow average that is still above 0.085 at
    step 200 has not fallen, and the run is judged.  A regression that went from 0.09 to 0.004 has learned.

    Noisy batches may hide what was learned, the held-out ones, which are always the same, do not.  So a run has also
    learned once two held-out losses in a row were lower by as much: below the start, or, where that is not the loss of
    a uniform model, below the start and the first held-out loss, which may be of another level than the training loss.
    If the unit is unknown, as much means m / 3 of that start, a twentieth for 0.15 nats.  Example: the batches scatter
    between 0.05 and 0.2, and the held-out losses are 0.062, 0.064, 0.058, 0.055: the last two are below 0.95 x 0.062.
    """

    name: ClassVar[str] = "never_learned"

    def __init__(self, config: TrainConfig) -> None:
        self._margin = config.never_learned_margin
        self._trained = config.start_from is not None
        self._learning = LEARNING_STEPS * pace_of(config.max_steps)
        self._deadline = _deadline(config, config.never_learned_fraction)
        self.memory = Enabled()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict at the deadline and later, as long as the run has not learned."""
        course = seen.course
        self._look(seen)
        start, best, since = course.initial, course.best, self.memory.since
        deadline = self._deadline if since is None else max(self._deadline, since + self._learning)
        if start is None or best is None or seen.step < deadline or self.memory.fell:
            return None
        if course.cap is None:
            return None if self._trained else self._never_fell(seen)
        if start < TRAINED_START * course.cap:
            return None
        if self._trained and start < course.cap - course.margin(self._margin):
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

    def begin_anew(self, step: int) -> None:
        """See `Rule`: as after warm-up, the run has `LEARNING_STEPS` to learn."""
        self.memory.since, self.memory.low = step, 0

    def _look(self, seen: Observation) -> None:
        loss, memory = seen.finite("validation_loss"), self.memory
        if loss is None or memory.fell:
            return
        if memory.first is None:
            memory.first = loss
        limit = self._held_out_limit(seen.course, memory.first)
        memory.low = memory.low + 1 if limit is not None and loss <= limit else 0
        memory.fell = memory.low >= _IN_A_ROW

    def _held_out_limit(self, course: LossCourse, first: float) -> float | None:
        """The held-out loss at which the run has learned; None before the start of the training loss is known."""
        start = course.initial
        if start is None:
            return None
        if course.cap is None:
            start = min(start, first)
            return start - self._margin / USUAL_PROGRESS * abs(start)
        margin = course.margin(self._margin)
        return (course.cap if start >= course.cap - margin else min(start, first)) - margin

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


@dataclass
class LastFall:
    """The best smoothed loss when it had last fallen by `stalled_slope`, its step, and the lowest held-out loss."""

    level: float | None = None
    step: int = 0
    held_out: float | None = None


class NoContext:
    """After `no_context_fraction` of the run, a language model predicts no better than the frequencies of the tokens.

    A model that has learned only how frequent each token is has the entropy of these frequencies as its loss,
    `unigram_entropy` in nats: 3.16 for the bytes of an English text, where a uniform model has 5.55.  A run is judged
    if neither its best smoothed training loss nor its lowest held-out loss is `never_learned_margin` below that, and
    the best has not fallen by `stalled_slope` within the last 100 steps (a fifth of a run of more than 500 steps),
    because a run that begins late is still falling.  A run that starts from given weights is not judged, nor one whose
    tokens are nearly always the same, with an entropy below twice the margin.
    Example, 500 steps: the best is 3.22 at step 190 and 3.13 at step 300, within 0.15 nats of 3.16: verdict.
    """

    name: ClassVar[str] = "no_context"

    def __init__(self, config: TrainConfig, unigram_entropy: float | None) -> None:
        self._entropy = None if config.start_from is not None else unigram_entropy
        self._margin, self._slope = config.never_learned_margin, config.stalled_slope
        self._deadline = _deadline(config, config.no_context_fraction)
        self._falling = STILL_FALLING * pace_of(config.max_steps)
        self.memory = LastFall()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict at the deadline and later, as long as the run has learned no context and its loss stays."""
        course, memory, held_out = seen.course, self.memory, seen.finite("validation_loss")
        if held_out is not None:
            memory.held_out = held_out if memory.held_out is None else min(memory.held_out, held_out)
        best = course.best
        if best is None or course.cap is None or self._entropy is None:
            return None
        if memory.level is None or best <= memory.level - course.margin(self._slope):
            memory.level, memory.step = best, seen.step
        if seen.step < self._deadline or seen.step - memory.step < self._falling:
            return None
        margin = course.margin(self._margin)
        limit = self._entropy - margin
        lowest = best if memory.held_out is None else min(best, memory.held_out)
        if lowest <= limit or self._entropy < 2 * margin:
            return None
        detail = (
            f"best smoothed loss {best:.3f} (step {course.best_step}), not below {limit:.3f} after {seen.step} steps: "
            f"the frequencies of the tokens alone give {self._entropy:.3f}"
        )
        return Verdict(seen.step, self.name, "loss", best, limit, detail)

    def begin_anew(self, step: int) -> None:
        """See `Rule`: the run has as many steps to fall as after a fall."""
        self.memory.step = step
