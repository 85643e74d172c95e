"""Reports as markdown, written from a results folder alone: why a run collapsed, and what a sweep found.

The reports contain only what the folder holds, without new measurements or guesses.  If a number is absent, the report
says so and names the config field that would have measured it.
"""

from altgrad.report.failure_report import failure_report, stored_report, write_failure_report
from altgrad.report.sweep_report import sweep_report

__all__ = ["failure_report", "stored_report", "sweep_report", "write_failure_report"]
