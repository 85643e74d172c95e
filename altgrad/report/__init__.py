"""Reports as markdown, written from a results folder alone: why a run collapsed, and what a sweep found.

Nothing is recomputed and nothing guessed: a number that the folder does not hold is said to be absent, with the
config field that would have measured it.
"""

from altgrad.report.failure_report import failure_report, stored_report, write_failure_report
from altgrad.report.sweep_report import sweep_report

__all__ = ["failure_report", "stored_report", "sweep_report", "write_failure_report"]
