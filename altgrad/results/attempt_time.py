"""How long one attempt at a run trained: `elapsed_seconds` goes on from attempt to attempt."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def seconds_of_attempt(steps: pa.Table, attempt: int) -> float | None:
    """Seconds of training of an attempt, from the steps table of when it was the last; None where it has no step.

    Its first step is 41, at which 18 s have elapsed, step 40 of the attempt before was at 17 s, its last step is at
    60 s: 43 s.
    """
    steps = steps.filter(pc.is_valid(steps["elapsed_seconds"]))
    own = steps.filter(pc.equal(steps["attempt"], attempt))
    if not own.num_rows:
        return None
    before = steps.filter(pc.less(steps["step"], pc.min(own["step"])))
    began = pc.max(before["elapsed_seconds"]).as_py() if before.num_rows else 0.0
    return max(0.0, pc.max(own["elapsed_seconds"]).as_py() - began)
