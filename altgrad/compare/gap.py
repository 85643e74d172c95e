"""The gap: a run's validation loss minus that of the BF16 run of the same seed and settings, at one step for all runs.

Gaps at different steps cannot be averaged or ranked: the same run may be 0.3 nats behind at step 100 and 0.1 at step
500.  So all runs that are alive and have the same task (see `Row.task`) share one step: the last step at which
each of them, and each of their baselines, measured its validation loss.  A run that collapsed, failed, was killed or
was stopped is left out when that step is chosen; its own gap is given at the last step that it and its baseline both
measured, and is neither averaged nor ranked.  Where no run alive has a baseline alive, the step is the last one that
all runs alive have measured, at which any two groups are compared.

For example, with a validation loss every 100 steps of 500:

    BF16   completed             loss at 500: 2.00
    E4M3   completed             loss at 500: 2.05   gap +0.05 at step 500
    E5M2   running, at 460       loss at 400: 2.30   until it reaches step 500, all gaps are given at step 400
    E7M0   collapsed at 135      loss at 100: 4.10   gap at step 100, left out of means and rankings
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from altgrad.results.reading.curves import Curve


def last_common_step(losses: Iterable[Curve]) -> int | None:
    """The last step at which each of the curves has a measurement (NaN counts as one); None without such a step."""
    common: set[int] | None = None
    for loss in losses:
        steps = set(loss.steps.tolist())
        common = steps if common is None else common & steps
    return max(common) if common else None


def gap_at(step: int, loss: Curve, baseline: Curve) -> float:
    """`loss` minus `baseline` at a step that both have measured; NaN or inf if one of the values is."""
    with np.errstate(invalid="ignore"):
        return float(_value(loss, step) - _value(baseline, step))


def loss_at(step: int | None, loss: Curve) -> float | None:
    """The loss at a step; None if it was not measured there."""
    return None if step is None or step not in loss.steps else float(_value(loss, step))


def _value(curve: Curve, step: int) -> np.float64:
    return np.float64(curve.values[np.searchsorted(curve.steps, step)])
