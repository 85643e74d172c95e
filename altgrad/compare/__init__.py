"""Comparison over runs: one row per run, paired with the baseline of its seed, and statistics over seeds.

Every number of a row depends on its run and on that run's baseline alone, and every statistic on the rows of
its own group alone: hiding a run changes nothing about the others.  So compute rows from all runs of a sweep and
filter the rows, never the runs.
"""

from altgrad.compare.pairing import Settings, baseline_of, config_difference, settings_of
from altgrad.compare.rows import STEP_COLUMNS, Row, Unpaired, check_run, comparison, pair, read_row
from altgrad.compare.statistics import (
    PairedGap,
    RescueCell,
    Survival,
    by_group,
    matrix_axes,
    paired_gap,
    rescue_matrix,
    survival,
)
from altgrad.compare.tables import comparison_csv, comparison_markdown, comparison_table, write_comparison

__all__ = [
    "STEP_COLUMNS",
    "PairedGap",
    "RescueCell",
    "Row",
    "Settings",
    "Survival",
    "Unpaired",
    "baseline_of",
    "by_group",
    "check_run",
    "comparison",
    "comparison_csv",
    "comparison_markdown",
    "comparison_table",
    "config_difference",
    "matrix_axes",
    "pair",
    "paired_gap",
    "read_row",
    "rescue_matrix",
    "settings_of",
    "survival",
    "write_comparison",
]
