"""The gap: validation loss minus that of the BF16 run of the same seed and settings, at one step for all runs.

Gaps of different steps cannot be averaged or ranked: a run is 0.3 nats behind at step 100 and 0.1 at step 500.  So
all runs that can be compared (same task and length, see `Settings.task`) and are alive share one step: the last at
which every one of them, and every baseline they are held against, measured its validation loss.  A run that
collapsed, failed, was killed or was stopped does not drag the others back to the step of its end; its gap is given at
the last step that it and its baseline both measured, and is neither averaged nor ranked.

For example, with a validation loss every 100 steps of 500:

    BF16   completed             loss at 500: 2.00
    E4M3   completed             loss at 500: 2.05   gap +0.05 at step 500
    E5M2   running, at 460       loss at 400: 2.30   drags all to step 400: E4M3 is now given there, too
    E7M0   collapsed at 135      loss at 100: 4.10   gap at step 100, which no mean and no ranking takes in
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from altgrad.results.curves import Curve


def last_common_step(losses: Iterable[Curve]) -> int | None:
    """The last step at which each of the curves has a measurement (NaN is one); None where there is no such step."""
    common: set[int] | None = None
    for loss in losses:
        steps = set(loss.steps.tolist())
        common = steps if common is None else common & steps
    return max(common) if common else None


def gap_at(step: int, loss: Curve, baseline: Curve) -> float:
    """Difference of two curves at a step that both have measured; NaN or inf where one of them is."""
    with np.errstate(invalid="ignore"):
        return float(_value(loss, step) - _value(baseline, step))


def _value(curve: Curve, step: int) -> np.float64:
    return np.float64(curve.values[np.searchsorted(curve.steps, step)])
