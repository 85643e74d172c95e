"""What a collapse rule is: it sees every step once, and answers with a verdict or None.

A rule remembers only what is in its `memory` (plain numbers, so that a checkpoint carries it).  Time beyond a
limit is counted in steps, not in records, because a sweep may report only every n-th step.  A rule whose metric
was not measured holds its judgement.

The patience fields of the config are the steps of a run of 500 (`max_steps`), or of a shorter one; a longer run waits
in proportion: 80 steps are 8,000 in a run of 50,000, which is not judged at step 200 for what 500 steps would not
forgive.  The time constants of the optimizer do not shrink with a shorter run, so the patience does not either.

What the rules must not do was learnt from rules that fail: ratios of losses never fire, since a model that falls
to uniform stops at ln(vocabulary); z-scores fire on every heavy tail; plateaus alone condemn runs that converge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from altgrad.collapse.course import LossCourse
from altgrad.results import Verdict

RECOVERY = 0.06  # share of the height that a value must lose to count as recovering


@dataclass(frozen=True)
class Observation:
    """One step as the rules see it.  `ticks`: time since the record before (see `smoothing`)."""

    step: int
    record: Mapping[str, float]
    course: LossCourse
    ticks: float

    @property
    def cap(self) -> float | None:
        """ln(vocabulary), the loss of a uniform model, where it is known."""
        return self.course.cap

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

    `peak` is the highest value beyond the limit, `floor` the lowest since.  Both move only by 6 % of their
    height over the origin, so that noise around a level that does not heal restarts the clock a few times at most.
    Example: best 2.0, risen to 5.0: each time the loss has fallen by another 6 % of its height (first to 4.82, then to
    4.65, ...) it is given the whole patience again; one that stays at 4.9 is given it once.
    """

    since: int | None = None
    peak: float = 0.0
    floor: float = 0.0
    clock: int = 0  # the step before the first one that counts

    def steps_beyond(self, step: int, value: float, limit: float, origin: float) -> int:
        """Steps in a row, this one included, beyond the limit without recovering; `origin` is where all is well."""
        if value <= limit:
            self.since = None
            return 0
        if self.since is None:
            self.since, self.peak, self.floor, self.clock = step, value, value, step - 1
        elif value > self.peak + RECOVERY * (self.peak - origin):
            self.peak = self.floor = value
        elif value < self.floor - RECOVERY * (self.floor - origin):
            self.floor, self.clock = value, step
        return step - self.clock
