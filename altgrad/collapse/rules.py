"""The collapse rules, one class each: how a run can be lost, and what tells it from a run that will heal.

A rule sees every step once, remembers only what is in its `memory` (plain numbers, so that a checkpoint carries
it), and answers with a verdict or None.  Patience is counted in steps, not in records, because a sweep may
report only every n-th step.  A rule whose metric was not measured holds its judgement.

What the rules must not do was learnt from rules that fail: ratios of losses never fire, since a model that falls
to uniform stops at ln(vocabulary); z-scores fire on every heavy tail; plateaus alone condemn runs that converge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from altgrad.collapse.smoothing import LossCourse
from altgrad.results import Verdict
from altgrad.training.config import TrainConfig

LEARNING_STEPS = 50  # steps at full learning rate before a run can be said not to learn
TRAINED_START = 0.5  # of ln(vocabulary): a run that starts below this starts from a trained model
RECOVERY = 0.1  # of a limit's margin: a fall by this much from the peak is recovery
RANK_MEASUREMENTS = 2  # in a row


@dataclass(frozen=True)
class Observation:
    """One step as the rules see it.  `cap`: ln(vocabulary), the loss of a uniform model, where it is known."""

    step: int
    record: Mapping[str, float]
    course: LossCourse
    cap: float | None

    @property
    def smoothed(self) -> float | None:
        return self.course.smoothed.value

    def finite(self, name: str) -> float | None:
        """A metric's value; None where it was not measured or is not finite."""
        value = self.record.get(name)
        return None if value is None or not math.isfinite(value) else float(value)


class Rule(Protocol):
    """`memory` is a dataclass of JSON-able fields that, with the loss course, decides all later answers."""

    name: ClassVar[str]
    memory: Any

    def judge(self, seen: Observation) -> Verdict | None: ...


@dataclass
class Excursion:
    """Time beyond a limit.  The clock restarts while the value falls back, so that what heals is never judged.

    `peak` is the highest value beyond the limit, `floor` the lowest since; both move in strides of `recovery`,
    so that noise around a level that does not heal stops the clock only a few times.
    """

    since: int | None = None
    peak: float = 0.0
    floor: float = 0.0
    clock: int = 0  # the step before the first one that counts

    def steps_beyond(self, step: int, value: float, limit: float, recovery: float) -> int:
        """Steps in a row, this one included, beyond the limit without recovering."""
        if value <= limit:
            self.since = None
            return 0
        if self.since is None:
            self.since, self.peak, self.floor, self.clock = step, value, value, step - 1
        elif value > self.peak + recovery:
            self.peak = self.floor = value
        elif value < self.floor - recovery:
            self.floor, self.clock = value, step
        return step - self.clock


@dataclass
class Since:
    """First step of an uninterrupted series, None outside one."""

    step: int | None = None


class NonFinite:
    """NaN or inf in the loss or the gradients for `non_finite_patience` steps in a row."""

    name: ClassVar[str] = "non_finite"

    def __init__(self, config: TrainConfig) -> None:
        self._patience = config.non_finite_patience
        self.memory = Since()

    def judge(self, seen: Observation) -> Verdict | None:
        loss = seen.record["loss"]
        share = seen.record.get("non_finite_gradients", 0.0)
        if math.isfinite(loss) and share == 0:
            self.memory.step = None
            return None
        if self.memory.step is None:
            self.memory.step = seen.step
        steps = seen.step - self.memory.step + 1
        if steps < self._patience:
            return None
        metric, value, limit = ("non_finite_gradients", share, 0.0) if math.isfinite(loss) else ("loss", loss, math.inf)
        detail = f"{metric} {value:.4g}; loss or gradients not finite at every step since step {self.memory.step}"
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
        steps = self.memory.steps_beyond(seen.step, smoothed, limit, RECOVERY * self._margin)
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
class FrozenWindows:
    """`starts`: (step, smoothed loss) at which each window of the current frozen series began, the last few."""

    previous: tuple[int, float] | None = None
    starts: list[tuple[int, float]] = field(default_factory=list)


class Stalled:
    """Intended updates do not arrive in the weights, measurement after measurement, and the loss makes no progress.

    Either alone is harmless: stochastic rounding stalls most weights at every step and trains well, and a loss
    on a plateau may be about to drop.  A measurement speaks for the window since the one before it; the last
    window must have begun after warm-up, because small learning rates stall first.
    """

    name: ClassVar[str] = "stalled"

    def __init__(self, config: TrainConfig) -> None:
        self._displacement = config.stalled_displacement
        self._slope = config.stalled_slope
        self._windows = config.stalled_windows
        self._warmup = config.warmup_steps
        self.memory = FrozenWindows()

    def judge(self, seen: Observation) -> Verdict | None:
        displacement, smoothed = seen.finite("realised_displacement"), seen.smoothed
        if smoothed is None:
            return None
        if self.memory.previous is None:
            self.memory.previous = (seen.step - 1, smoothed)
        if displacement is None:
            return None
        begin, self.memory.previous = self.memory.previous, (seen.step, smoothed)
        if displacement >= self._displacement:
            self.memory.starts = []
            return None
        self.memory.starts = [*self.memory.starts, begin][-self._windows :]
        if len(self.memory.starts) < self._windows or begin[0] < self._warmup:
            return None
        since, loss_then = self.memory.starts[0]
        progress = (loss_then - smoothed) / (seen.step - since) * 100
        if progress >= self._slope:
            return None
        detail = (
            f"realised displacement below {self._displacement:g} at {self._windows} measurements in a row since step "
            f"{since}, and the smoothed loss went from {loss_then:.3f} to {smoothed:.3f}: {progress:.3f} nats of "
            f"progress per 100 steps, {self._slope:g} would count"
        )
        return Verdict(seen.step, self.name, "realised_displacement", displacement, self._displacement, detail)


@dataclass
class RankReference:
    """Stable rank and smoothed loss that a fall is measured from, the loss at the last measurement, the fall."""

    rank: float | None = None
    loss: float = 0.0
    previous_loss: float = 0.0
    low: int = 0
    low_since: int | None = None


class RankCollapse:
    """The smallest stable rank fell by `rank_collapse_ratio` without the loss improving meanwhile.

    Stable rank always falls while a model learns, in wide layers to a small share of its start, so a level says
    nothing.  The reference starts at the first measurement and follows the rank down as the loss improves; what
    remains is a fall that learning does not explain.  No matrix has a stable rank below 1: the ratio applies to
    what exceeds 1, or it could never be met by a layer that starts below 1 / ratio.
    """

    name: ClassVar[str] = "rank_collapse"

    def __init__(self, config: TrainConfig) -> None:
        self._ratio = config.rank_collapse_ratio
        self._learned = config.never_learned_margin
        self.memory = RankReference()

    def judge(self, seen: Observation) -> Verdict | None:
        rank, smoothed, memory = seen.finite("stable_rank"), seen.smoothed, self.memory
        if rank is None or smoothed is None:
            return None
        learned_now = memory.previous_loss - smoothed >= self._learned
        memory.previous_loss = smoothed
        if memory.rank is None:
            memory.rank, memory.loss = rank, smoothed
            return None
        limit = 1 + self._ratio * (memory.rank - 1)
        if rank >= limit or (memory.low == 0 and learned_now):
            memory.low, memory.low_since = 0, None
            if memory.loss - smoothed >= self._learned:
                memory.rank, memory.loss = rank, smoothed
            return None
        memory.low += 1
        if memory.low_since is None:
            memory.low_since = seen.step
        if memory.low < RANK_MEASUREMENTS:
            return None
        detail = (
            f"smallest stable rank below {limit:.3g} since step {memory.low_since}; it was {memory.rank:.3g} when the "
            f"smoothed loss was {memory.loss:.3f}, now {smoothed:.3f}"
        )
        return Verdict(seen.step, self.name, "stable_rank", rank, limit, detail)


@dataclass
class Nothing:
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
        self.memory = Nothing()

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
        steps = self.memory.steps_beyond(seen.step, gap, self._limit, RECOVERY * self._limit)
        if steps < self._patience:
            return None
        detail = (
            f"more than {self._limit:g} nats behind the baseline since step {self.memory.since}, not catching up "
            f"for {steps} steps"
        )
        return Verdict(seen.step, self.name, "gap_to_baseline", gap, self._limit, detail)


# At one step the first that fires counts: the more specific explanation before the more general.
RULES: tuple[type[Rule], ...] = (NonFinite, Diverged, Stalled, RankCollapse, NeverLearned, GapToBaseline)  # type: ignore[assignment]
