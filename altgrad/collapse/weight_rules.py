"""Rules that judge a run by its weights, each with the loss as witness: frozen, and fallen in rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from altgrad.collapse.rule import Observation
from altgrad.collapse.smoothing import pace_of
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

RANK_MEASUREMENTS = 2  # in a row
RANK_TO_LOSE = 2.0  # a matrix below this, as a healthy output head is, has no rank to lose
EXPLAINING = 0.5  # nats learned between two measurements that explain any fall of the rank between them
WINDOWS_PER_RUN = 20  # what must last for n measurements must last for n twentieths of the run too


@dataclass
class FrozenWindows:
    """`starts`: (step, smoothed loss) at which the windows of the current frozen series began, those that count."""

    previous: tuple[int, float] | None = None
    starts: list[tuple[int, float]] = field(default_factory=list)


class Stalled:
    """Intended updates do not arrive in the weights, measurement after measurement, and the loss makes no progress.

    Either alone is harmless: stochastic rounding stalls most weights at every step and trains well, and a loss
    on a plateau may be about to drop.  A measurement speaks for the window since the one before it; the last
    window must have begun after warm-up, because small learning rates stall first.

    Example, 500 steps, measured every 50: displacement 0.02 at steps 300, 350 and 400, smoothed loss 2.51 at 250 and
    2.48 at 400: 0.02 nats per 100 steps, less than the 0.1 that count as progress, verdict at 400.  Three windows must
    also be three twentieths of the run: 50,000 steps that are measured every 50 are not judged after 150, but once
    nothing has arrived for 7,500 and the loss has meanwhile fallen by less than 0.1 nats per 10,000 steps.
    """

    name: ClassVar[str] = "stalled"

    def __init__(self, config: TrainConfig) -> None:
        self._displacement = config.stalled_displacement
        self._slope = config.stalled_slope
        self._windows = config.stalled_windows
        self._warmup = config.warmup_steps
        self._pace = pace_of(config.max_steps)
        self._least = config.stalled_windows * config.max_steps / WINDOWS_PER_RUN
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
        detail = (
            f"realised displacement below {self._displacement:g} at {self._windows} measurements in a row since step "
            f"{since}, and the smoothed loss went from {loss_then:.4g} to {smoothed:.4g}: {needed:.3g}"
            f"{seen.course.unit_word} less would have counted as progress"
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
    """The median stable rank fell by `rank_collapse_ratio` without the loss improving meanwhile.

    Stable rank always falls while a model learns, in wide layers to a small share of its start, so a level says
    nothing.  The reference is the highest measurement so far, but follows the rank down as the loss improves; what
    remains is a fall that learning does not explain.  No matrix has a stable rank below 1: the ratio applies to
    what exceeds 1, or it could never be met by a layer that starts below 1 / ratio.

    Example: stable rank 12 until step 250, 1.2 at 300 and 350, smoothed loss 2.6, 2.5, 2.45: the limit is
    1 + 0.1 x 11 = 2.1, no 0.5 nats were learned between 250 and 300 that would explain the fall, and it has lasted for
    more than a twentieth of the 500 steps: verdict at 350.
    """

    name: ClassVar[str] = "rank_collapse"

    def __init__(self, config: TrainConfig) -> None:
        self._ratio = config.rank_collapse_ratio
        self._learned = config.never_learned_margin
        self._least = (RANK_MEASUREMENTS - 1) * config.max_steps / WINDOWS_PER_RUN
        self.memory = RankReference()

    def judge(self, seen: Observation) -> Verdict | None:
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
