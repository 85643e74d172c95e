"""Training time of one attempt at a run: `elapsed_seconds` counts on from one attempt to the next."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def seconds_of_attempt(steps: pa.Table, attempt: int) -> float | None:
    """Seconds for which an attempt trained, from the steps table at a time when it was the last; None without a step.

    Example: step 40 of the attempt before ended at 17 s; this attempt began with step 41, and its last step ended at
    60 s.  It trained for 43 s.
    """
    steps = steps.filter(pc.is_valid(steps["elapsed_seconds"]))
    own = steps.filter(pc.equal(steps["attempt"], attempt))
    if not own.num_rows:
        return None
    before = steps.filter(pc.less(steps["step"], pc.min(own["step"])))
    began = pc.max(before["elapsed_seconds"]).as_py() if before.num_rows else 0.0
    return max(0.0, pc.max(own["elapsed_seconds"]).as_py() - began)
