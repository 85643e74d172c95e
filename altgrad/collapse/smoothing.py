"""The one smoothing of the loss that every collapse rule and the gap to the baseline share.

Batch losses have heavy tails: raw values trip any threshold sooner or later, and an average that one wild step
can drag away trips it for long after.  So the smoothing is an exponential average that halves a value's weight
every `HALF_LIFE` ticks, corrected for its start, in which one value counts as at most `reach` above the average so
far; below it zero is bound enough, and a start from hundreds of nats must be left quickly.  NaN and inf are not
averaged at all; the rules judge them apart.

A tick is a step of a run of up to `USUAL_STEPS` steps; a longer run is divided into as many ticks, so that it is judged
on the same shares of its time: in a run of 50,000 steps a tick is 100 steps and the half-life 1,000.  Where only every
n-th step is reported a report counts as one tick at most: fewer batches are not less noisy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

USUAL_STEPS = 500  # steps of the run whose numbers the collapse fields of the config are
HALF_LIFE = 10  # ticks
REACH = 3.0  # nats; one step lifts a settled average by at most 0.067 of this


def pace_of(max_steps: int) -> float:
    """Steps of one tick: 1 up to 500 steps, 100 in a run of 50,000."""
    return max(1.0, max_steps / USUAL_STEPS)


@dataclass
class Smoothed:
    """Exponential average over the finite values given to it; `value` is None before the first."""

    total: float = 0.0
    weight: float = 0.0  # 1 - 2^(-ticks seen / half-life)

    def update(self, value: float, ticks: float = 1.0, reach: float = REACH, half_life: float = HALF_LIFE) -> None:
        if not math.isfinite(value):
            return
        if self.value is not None:
            value = min(value, self.value + reach)
        keep = 0.5 ** (ticks / half_life)
        self.total = keep * self.total + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight > 0 else None

    @property
    def settled(self) -> bool:
        """Whether the average stands on two half-lives of values and not on a few noisy batches."""
        return self.weight >= 0.75 - 1e-9
