"""Smoothing of the loss, shared by all collapse rules and by the gap to the baseline.

Batch losses have heavy tails: single raw values exceed any threshold sooner or later, and after one extreme step a
plain average would exceed it for many more steps.  So the loss is smoothed by an exponential moving average with a
half-life of `HALF_LIFE` ticks and normalised weights, in which a value counts as at most `reach` above the average.
There is no such bound below the average: losses are usually not below 0, and a start of hundreds of nats must be left
quickly.  NaN and inf are left out; the rule `non_finite` judges them.

Example with a half-life of 10 ticks, where a new value has the weight 1 - 2^(-1/10) = 0.067: the average is settled at
2.0, and one batch has the loss 50.  It counts as 2.0 + 3.0 = 5.0, so the average becomes 0.933 * 2.0 + 0.067 * 5.0 =
2.2.  After ten more batches of 2.0 it is 2.1.  Unbounded it would have become 5.2.

A tick is one step in runs of up to `USUAL_STEPS` steps.  A longer run is divided into `USUAL_STEPS` ticks, so that its
time constants are the same shares of the run: in a run of 50,000 steps a tick is 100 steps and the half-life is 1,000
steps.  If only every n-th step is reported, each report counts as one tick at most, since fewer batches average out
less noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

USUAL_STEPS = 500  # length of the runs for which the collapse fields of the config were chosen
HALF_LIFE = 10  # ticks
REACH = 3.0  # nats; one step raises a settled average by at most 0.067 of this


def pace_of(max_steps: int) -> float:
    """Steps of one tick: 1 up to 500 steps, 100 in a run of 50,000."""
    return max(1.0, max_steps / USUAL_STEPS)


@dataclass
class Smoothed:
    """Exponential moving average of finite values; `value` is None before the first."""

    total: float = 0.0
    weight: float = 0.0  # 1 - 2^(-ticks seen / half-life)

    def update(self, value: float, ticks: float = 1.0, reach: float = REACH, half_life: float = HALF_LIFE) -> None:
        """Add a value that stands for `ticks` ticks; one that is not finite is left out.

        A value more than `reach` above the average counts as average + `reach`.  `half_life`: ticks.
        """
        if not math.isfinite(value):
            return
        if self.value is not None:
            value = min(value, self.value + reach)
        keep = 0.5 ** (ticks / half_life)
        self.total = keep * self.total + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)

    @property
    def value(self) -> float | None:
        """The average; None before the first finite value."""
        return self.total / self.weight if self.weight > 0 else None

    @property
    def settled(self) -> bool:
        """Whether the average contains values of at least two half-lives, instead of a few noisy batches."""
        return self.weight >= 0.75 - 1e-9
