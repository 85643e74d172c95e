"""Collapse: records in, verdict out.  The only rule set, for the training loop and for the sweep's stopper.

    smoothing.py     the one smoothing of the loss; ticks, the time of a run
    course.py        the loss so far: start, average, best, scatter; what a margin is where the unit is unknown
    baseline.py      the gap to a baseline
    stored_gap.py    the gap in the rows of a run, once both are over
    rule.py          what a rule sees and remembers
    loss_rules.py    non_finite, diverged, never_learned, gap_to_baseline
    weight_rules.py  stalled, rank_collapse
    detector.py      CollapseDetector

Plain Python on records; no torch.  Thresholds are fields of `TrainConfig`, section "collapse rules".
"""

from altgrad.collapse.baseline import BaselineGap
from altgrad.collapse.detector import CollapseDetector, gap_to_baseline
from altgrad.collapse.stored_gap import store_gap

__all__ = ["BaselineGap", "CollapseDetector", "gap_to_baseline", "store_gap"]
