"""Collapse detection: from the records of steps to a verdict.  The training loop and the sweep's stopper share it.

    smoothing.py       smoothing of the loss, and ticks: the unit of time of a run
    course.py          the loss so far: start, average, best, scatter; margins for losses of unknown unit
    baseline.py        the gap to a baseline, step by step
    stored_gap.py      the gap, written into a run's rows after both runs have ended
    rule.py            interface of a rule: its input, its memory, its answer
    loss_rules.py      non_finite, diverged, gap_to_baseline
    held_out_rules.py  degraded, never_learned, no_context
    weight_rules.py    stalled, rank_collapse
    detector.py        CollapseDetector
    loss_log.py        losses from the log of another trainer, which the detector can judge
    forecast.py        the warning before a collapse, which is no verdict

Plain Python without torch.  The thresholds are the fields of `TrainConfig` in the section "collapse rules".
"""

from altgrad.collapse.baseline import BaselineGap
from altgrad.collapse.detector import CollapseDetector, gap_to_baseline, judged
from altgrad.collapse.forecast import CollapseForecast
from altgrad.collapse.stored_gap import store_gap

__all__ = ["BaselineGap", "CollapseDetector", "CollapseForecast", "gap_to_baseline", "judged", "store_gap"]
