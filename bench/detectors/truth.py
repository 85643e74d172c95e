"""Which run collapsed: by its held-out loss to the end, against that of its twin, with which it shares seed and task.

Let V be the held-out loss, T the last step, and the *loss of progress* of a run at step t

    lost(t) = (V_run(t) - V_twin(t)) / (V_twin(0) - V_twin(T)):

the part of what the twin learned in the whole run that this run is behind.  `lost` without a step is the mean of the
last three measurements.

    collapsed   lost is at least 10 % and did not shrink by a tenth over the last quarter of the run, or the held-out
                loss is not finite at the end, or most steps of the last quarter had a loss or gradient that is not
    healthy     lost is at most 5 %
    undecided   everything else; such a run is shown, and not scored

The held-out batches are never faulty, and nothing in the rule is a threshold of a detector.  10 % is 0.3 nats where a
twin learns 3: more than any format with FP32 master weights loses.  A run that is behind and still catches up would be
stopped too early by some and rightly by others, and is therefore undecided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bench.detectors.recording import Recording

COLLAPSED, HEALTHY = 0.10, 0.05  # parts of the twin's progress
CATCHING_UP = 0.1  # part of its loss of progress that a run must make up for in the last quarter
_LAST = 3  # measurements that are averaged


@dataclass(frozen=True)
class Outcome:
    """What became of a run; `lost` is inf if its held-out loss is not finite at the end.

    visible: the first step from which on it has lost at least 10 % at every measurement; None if it did not collapse.
    """

    kind: Literal["collapsed", "healthy", "undecided"]
    lost: float
    visible: int | None = None


def outcome(run: Recording, twin: Recording) -> Outcome:
    """The outcome of a run; the twin's own is healthy."""
    lost = lost_progress(run, twin)
    steps = sorted(lost)
    last = steps[-_LAST:]
    end = sum(lost[step] for step in last) / len(last)
    before = [step for step in steps if step <= 0.75 * run.steps][-_LAST:]
    earlier = sum(lost[step] for step in before) / len(before)
    if not math.isfinite(end) or _mostly_not_finite(run):
        return Outcome("collapsed", math.inf, _visible(lost))
    if end <= HEALTHY:
        return Outcome("healthy", end)
    catches_up = math.isfinite(earlier) and end < (1 - CATCHING_UP) * earlier
    if end < COLLAPSED or catches_up:
        return Outcome("undecided", end)
    return Outcome("collapsed", end, _visible(lost))


def lost_progress(run: Recording, twin: Recording) -> dict[int, float]:
    """lost(t) by step, without step 0; inf where the run's loss is not finite."""
    learned = twin.held_out[0] - twin.held_out[twin.steps]
    found = {step: (run.held_out[step] - twin.held_out[step]) / learned for step in run.held_out if step}
    return {step: value if math.isfinite(value) else math.inf for step, value in found.items()}


def _mostly_not_finite(run: Recording) -> bool:
    rows = run.rows[-run.steps // 4 :]
    bad = [row for row in rows if not math.isfinite(row["loss"]) or row["non_finite_gradients"] > 0]
    return 2 * len(bad) > len(rows)


def _visible(lost: dict[int, float]) -> int | None:
    found = None
    for step in sorted(lost, reverse=True):
        if lost[step] < COLLAPSED:
            break
        found = step
    return found
