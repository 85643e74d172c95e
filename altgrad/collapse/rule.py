"""The interface of a collapse rule: it sees every step once, and answers with a verdict or None.

All state of a rule is in its `memory`, which consists of plain numbers, so that a checkpoint can store it.  The time
beyond a limit is counted in steps, not in records, because a sweep may report only every n-th step.  A rule gives no
verdict at a step at which its metric was not measured.

The patience fields of the config apply to runs of up to 500 steps (`max_steps`).  In a longer run the patience grows in
proportion: 80 steps become 8,000 in a run of 50,000 steps.  In a run shorter than 500 steps it does not shrink, because
the time constants of the optimizer do not shrink either.

An act of an intervention that makes the run another one (metric `rescue_acts`) restarts every count: steps from before
it say nothing about the run that it may have saved.  The detector tells the rules, see `CollapseDetector`.

These rules avoid three criteria that fail: a ratio of losses never fires, since a model that falls back to uniform
stops at ln(vocabulary); a z-score fires on every heavy tail; a plateau alone would stop runs that have converged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from altgrad.collapse.course import LossCourse
from altgrad.results import Verdict

RECOVERY = 0.06  # share of its height above the origin that a value must lose to count as recovering


@dataclass(frozen=True)
class Observation:
    """One step as the rules see it.  `ticks`: the time since the previous record (see `smoothing`)."""

    step: int
    record: Mapping[str, float]
    course: LossCourse
    ticks: float

    @property
    def cap(self) -> float | None:
        """ln(vocabulary), the loss of a uniform model; None if the unit of the loss is unknown."""
        return self.course.cap

    @property
    def smoothed(self) -> float | None:
        """The smoothed loss up to this step; None before the first finite one."""
        return self.course.smoothed.value

    def finite(self, name: str) -> float | None:
        """The value of a metric at this step; None if it was not measured or is not finite."""
        value = self.record.get(name)
        return None if value is None or not math.isfinite(value) else float(value)


class Rule(Protocol):
    """A collapse rule.  All later answers depend on the loss course and on `memory`, a dataclass of JSON values."""

    name: ClassVar[str]
    memory: Any

    def judge(self, seen: Observation) -> Verdict | None:
        """The verdict if the run has collapsed by this rule, else None; called once per record, in order."""

    def begin_anew(self, step: int) -> None:
        """Count from the step after this one, at whose end an intervention has made the run another one.

        What the rule compares with stays: the best loss, the reference of the rank, the baseline.
        """


@dataclass
class Excursion:
    """Counts the steps for which a value is beyond a limit; the count restarts whenever the value has recovered a bit.

    `peak` is the highest value beyond the limit, `floor` the lowest one since then.  Both change only if the value
    passes them by 6 % of their height above the origin, so that noise around a constant level restarts the count a few
    times at most.  Example: the best loss (the origin) is 2.0, and the loss has risen to 5.0.  When it has fallen by
    6 % of its height, first to 4.82, then to 4.65, ..., the count restarts, so a run that keeps recovering is never
    judged.  A loss that stays at 4.9 restarts nothing and is judged after the patience.
    """

    since: int | None = None
    peak: float = 0.0
    floor: float = 0.0
    clock: int | None = None  # the step before the first one that counts; None: the next one beyond is the first

    def steps_beyond(self, step: int, value: float, limit: float, origin: float, recovery: float = RECOVERY) -> int:
        """Steps in a row beyond the limit without recovery, including this one; `origin` is the healthy value.

        recovery: the share of its height above the origin that the value must lose; the 6 % of the class's description.
        """
        if value <= limit:
            self.since = None
            return 0
        if self.since is None:
            self.since, self.clock = step, None
        if self.clock is None:
            self.peak, self.floor, self.clock = value, value, step - 1
        elif value > self.peak + recovery * (self.peak - origin):
            self.peak = self.floor = value
        elif value < self.floor - recovery * (self.floor - origin):
            self.floor, self.clock = value, step
        return step - self.clock

    def begin_anew(self) -> None:
        """Forget which steps count; `since` stays, as the value may have been beyond the limit all the time."""
        self.clock = None
