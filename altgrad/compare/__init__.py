"""Comparison over runs: one row per run, paired with the baseline of its seed, and statistics over seeds.

Each fact has one owner here, which every table, page, report and export asks:

- which runs are held against which: `pairing` (settings), `origin` (weights and data), `baselines`;
- the gap and its step: `gap`.  All runs that are alive are compared at the last step that all of them measured; a run
  that collapsed at step 135 has its gap at step 100, where it last measured, and enters no mean and no ranking;
- which runs are one group, and what it is called: `groups`;
- what may be said of a group, and who is nearest to the baseline: `statistics`; who survived: `rescue`.

What a row says depends on the whole comparison (the common step, the fields that differ); every statistic depends on
the rows of its own group alone.  So compute rows from all runs of a sweep and filter the rows, never the runs: then
hiding a run changes nothing about the others.
"""

from altgrad.compare.comparison_rows import STEP_COLUMNS, comparison, pair, read_row
from altgrad.compare.comparison_table import comparison_csv, comparison_markdown, comparison_table, write_comparison
from altgrad.compare.groups import by_group
from altgrad.compare.pairing import Settings, config_difference, settings_of
from altgrad.compare.rescue import RescueCell, Survival, matrix_axes, rescue_matrix, survival
from altgrad.compare.row import Row, Unpaired, loss_unit
from altgrad.compare.statistics import PairedGap, collapse_step, furthest, paired_gap, ranking

__all__ = [
    "STEP_COLUMNS",
    "PairedGap",
    "RescueCell",
    "Row",
    "Settings",
    "Survival",
    "Unpaired",
    "by_group",
    "collapse_step",
    "comparison",
    "comparison_csv",
    "comparison_markdown",
    "comparison_table",
    "config_difference",
    "furthest",
    "loss_unit",
    "matrix_axes",
    "pair",
    "paired_gap",
    "ranking",
    "read_row",
    "rescue_matrix",
    "settings_of",
    "survival",
    "write_comparison",
]
