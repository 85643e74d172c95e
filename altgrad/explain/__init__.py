"""Proof of cause: which replays of a collapse to run, and what their results show.

A failure report says what moved first, which is a correlation.  Here a collapse is replayed from a checkpoint before it
with one thing healed at a time; each replay is an arm.  This package decides which arms to run and what they prove; it
trains nothing and reads no Ray, so that all of it can be tested on made-up truths.

    cells.py       the cells (layer, operand) of a model, and the config changes that heal some of them
    search.py      bisection: the smallest set of cells whose healing prevents the collapse
    arm.py         one arm, and what it showed
    harm.py        how much of the collapse's harm an arm leaves
    arms.py        the arms of an explanation, and which of them to run next
    conclusion.py  what the results show, by rule
    record.py      explanation.json: its fields, its checked reader
"""

from altgrad.explain.arm import Arm, ArmResult
from altgrad.explain.arms import Case, next_arms
from altgrad.explain.conclusion import Conclusion, conclude
from altgrad.explain.record import EXPLANATION, read_explanation

__all__ = [
    "EXPLANATION",
    "Arm",
    "ArmResult",
    "Case",
    "Conclusion",
    "conclude",
    "next_arms",
    "read_explanation",
]
