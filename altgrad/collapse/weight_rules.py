"""Rules that judge a run by its weights: they are frozen, or their rank collapsed.  The loss must confirm either."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from altgrad.collapse.rule import Observation
from altgrad.collapse.smoothing import pace_of
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

RANK_MEASUREMENTS = 2  # measurements in a row that must find a low rank
RANK_TO_LOSE = 2.0  # a lower reference is not judged: a healthy output head may have one
EXPLAINING = 0.5  # nats learned between two measurements that explain any fall of the rank between them
WINDOWS_PER_RUN = 20  # a condition for n measurements in a row must also last for n twentieths of the run


@dataclass
class FrozenWindows:
    """Memory of `Stalled`.  `previous`: (step, smoothed loss) of the last measurement, where the next window begins.

    `starts`: the same for the beginning of each window in the current series of frozen windows, without windows that
    are not needed any more.  `anew`: the step of the last rescue; a window that begins before it does not count.
    """

    previous: tuple[int, float] | None = None
    starts: list[tuple[int, float]] = field(default_factory=list)
    anew: int = 0


class Stalled:
    """At several measurements in a row the updates do not reach the weights, and the loss makes no progress.

    Either condition alone is harmless: with stochastic rounding most weights stall at every step and the model still
    trains, and a loss on a plateau may be about to drop.  A measurement stands for the window since the previous one;
    the last window must have begun after warm-up, because the small updates of warm-up stall most easily.

    Example, 500 steps, measured every 50: the realised displacement is 0.02 at steps 300, 350 and 400, and the smoothed
    loss is 2.51 at step 250 and 2.48 at step 400.  It fell by 0.02 nats per 100 steps, less than the 0.1 that count as
    progress: the verdict comes at step 400.

    Where the gap to a baseline is known, the run must also be behind by half of `gap_limit`: a run that has frozen next
    to its baseline has lost little, and the baseline makes no more progress either.

    The `stalled_windows` windows must also cover as many twentieths of the run.  In a run of 50,000 steps, measured
    every 50, three windows are only 150 steps; it is judged when the weights have been frozen for 7,500 steps and the
    loss has meanwhile fallen by less than 0.1 nats per 10,000 steps.
    """

    name: ClassVar[str] = "stalled"

    def __init__(self, config: TrainConfig) -> None:
        self._displacement = config.stalled_displacement
        self._slope = config.stalled_slope
        self._windows = config.stalled_windows
        self._behind = config.gap_limit / 2
        self._warmup = config.warmup_steps
        self._pace = pace_of(config.max_steps)
        self._least = config.stalled_windows * config.max_steps / WINDOWS_PER_RUN
        self.memory = FrozenWindows()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if enough windows in a row were frozen and the loss has made no progress meanwhile."""
        displacement, smoothed = seen.finite("realised_displacement"), seen.smoothed
        if smoothed is None:
            return None
        if self.memory.previous is None:
            self.memory.previous = (seen.step - 1, smoothed)
        if displacement is None:
            return None
        begin, self.memory.previous = self.memory.previous, (seen.step, smoothed)
        if displacement >= self._displacement or begin[0] < self.memory.anew:
            self.memory.starts = []
            return None
        starts = self.memory.starts = [*self.memory.starts, begin]
        while len(starts) > self._windows and seen.step - starts[1][0] >= self._least:
            del starts[0]
        since, loss_then = starts[0]
        if len(starts) < self._windows or seen.step - since < self._least or begin[0] < self._warmup:
            return None
        steps_per_hundred = (seen.step - since) / (100 * self._pace)
        needed = seen.course.margin(self._slope * steps_per_hundred)
        if loss_then - smoothed >= needed:
            return None
        gap = seen.finite("gap_to_baseline")
        if gap is not None and gap < seen.course.margin(self._behind):
            return None
        detail = (
            f"realised displacement below {self._displacement:g} at {self._windows} measurements in a row since step "
            f"{since}, and the smoothed loss went from {loss_then:.4g} to {smoothed:.4g}: {needed:.3g}"
            f"{seen.course.unit_word} less would have counted as progress"
        )
        return Verdict(seen.step, self.name, "realised_displacement", displacement, self._displacement, detail)

    def begin_anew(self, step: int) -> None:
        """See `Rule`: the window in which the act lies does not count."""
        self.memory.starts, self.memory.anew = [], step


@dataclass
class RankReference:
    """Memory of `RankCollapse`.  `rank`, `loss`: stable rank and smoothed loss of the reference of a fall.

    `previous_loss`: smoothed loss at the last measurement.  `low`, `low_since`: number of measurements of the current
    fall, and its first step.
    """

    rank: float | None = None
    loss: float = 0.0
    previous_loss: float = 0.0
    low: int = 0
    low_since: int | None = None


class RankCollapse:
    """The median stable rank fell to `rank_collapse_ratio` of a reference, and the loss did not improve meanwhile.

    The stable rank of every model falls while it learns, in wide layers to a small share of its start, so a low rank
    alone proves nothing.  The reference is the highest rank so far, but whenever the loss has improved by
    `never_learned_margin`, the current rank becomes the reference; so only a fall that learning does not explain is
    found.  Since no matrix has a stable rank below 1, the ratio applies to the excess over 1: with the ratio 0.1, a
    layer with the rank 8 could otherwise never reach the limit 0.8.

    Example, 500 steps: the stable rank is 12 until step 250, and 1.2 at steps 300 and 350, with the smoothed losses
    2.6, 2.5 and 2.45.  The limit is 1 + 0.1 x (12 - 1) = 2.1.  Between steps 250 and 300 the loss fell by less than the
    0.5 nats that would explain the fall, and the rank has been low for 50 steps, at least a twentieth of the run: the
    verdict comes at step 350.
    """

    name: ClassVar[str] = "rank_collapse"

    def __init__(self, config: TrainConfig) -> None:
        self._ratio = config.rank_collapse_ratio
        self._learned = config.never_learned_margin
        self._least = (RANK_MEASUREMENTS - 1) * config.max_steps / WINDOWS_PER_RUN
        self.memory = RankReference()

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if the rank has been below the limit for enough measurements."""
        rank, smoothed, memory = seen.finite("stable_rank"), seen.smoothed, self.memory
        if rank is None or smoothed is None:
            return None
        explained = memory.previous_loss - smoothed >= seen.course.margin(EXPLAINING)
        memory.previous_loss = smoothed
        if memory.rank is None:
            memory.rank, memory.loss = rank, smoothed
            return None
        limit = 1 + self._ratio * (memory.rank - 1)
        if rank >= limit or memory.rank < RANK_TO_LOSE or (memory.low == 0 and explained):
            memory.low, memory.low_since = 0, None
            if memory.loss - smoothed >= seen.course.margin(self._learned) or rank > memory.rank:
                memory.rank, memory.loss = rank, smoothed
            return None
        memory.low += 1
        if memory.low_since is None:
            memory.low_since = seen.step
        if memory.low < RANK_MEASUREMENTS or seen.step - memory.low_since < self._least:
            return None
        detail = (
            f"median stable rank below {limit:.3g} since step {memory.low_since}; it was {memory.rank:.3g} when the "
            f"smoothed loss was {memory.loss:.4g}, now {smoothed:.4g}"
        )
        return Verdict(seen.step, self.name, "stable_rank", rank, limit, detail)

    def begin_anew(self, step: int) -> None:
        """See `Rule`."""
        self.memory.low, self.memory.low_since = 0, None
