"""A rule that judges a run by its held-out loss: it rose above its best, and the training loss rose too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from altgrad.collapse.loss_rules import rise_limit
from altgrad.collapse.rule import Excursion, Observation
from altgrad.collapse.smoothing import pace_of
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict

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
