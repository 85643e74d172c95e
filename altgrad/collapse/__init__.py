"""Collapse: records in, verdict out.  The only rule set, for the training loop and for the sweep's stopper.

    smoothing.py     the one smoothing of the loss, the loss course, the gap to a baseline
    rule.py          what a rule sees and remembers
    loss_rules.py    non_finite, diverged, never_learned, gap_to_baseline
    weight_rules.py  stalled, rank_collapse
    detector.py      CollapseDetector

Plain Python on records; no torch.  Thresholds are fields of `TrainConfig`, section "collapse rules".
"""

from altgrad.collapse.detector import CollapseDetector
from altgrad.collapse.smoothing import BaselineGap

__all__ = ["BaselineGap", "CollapseDetector"]
