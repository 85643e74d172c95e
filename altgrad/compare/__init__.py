"""Comparison of runs: one row per run, paired with the baseline of the same seed, and statistics over seeds.

All tables, pages, reports and exports take these facts from here:

- the baseline of each run: `pairing` (settings), `origin` (weights and data), `baselines`;
- the gap and its step: `gap`.  All runs that are alive are compared at the last step that all of them measured; a run
  that collapsed at step 135 has its gap at step 100, its last measurement, and is left out of means and rankings;
- the groups of runs and their names: `groups`;
- the mean gap of a group and the ranking: `statistics`; the survivors: `rescue`; the best learning rates: `rates`;
- the claim that a group's gaps support, any group against any other, and what differs besides the format: `parity`;
- which rows are shown, because people hide runs: `shown_rows`.

A row depends on the whole comparison (the common step, the fields that differ), while a statistic depends on the rows
of its own group alone.  So compute the rows from all runs of a sweep, then filter the rows, never the runs: hiding a
run then changes nothing about the others.
"""

from altgrad.compare.comparison_rows import STEP_COLUMNS, comparison, pair, read_row
from altgrad.compare.comparison_table import comparison_csv, comparison_markdown, comparison_table, write_comparison
from altgrad.compare.groups import by_group, by_task, tasks_note
from altgrad.compare.pairing import Settings, config_difference, settings_of
from altgrad.compare.parity.pairs import GroupDifference, all_pairs, difference_curve, group_difference, paired_runs
from altgrad.compare.parity.parity_table import (
    ParityLine,
    pairs_note,
    parity_lines,
    parity_markdown,
    parity_note,
    parity_table,
    planned_terms,
)
from altgrad.compare.parity.two_sweeps import SWEEPS_HEADS, SweepsLine, sweeps_lines, sweeps_table
from altgrad.compare.parity.verdict import Parity, Terms
from altgrad.compare.rates import RATE_HEADS, RateLine, rate_lines, rates_markdown, rates_note
from altgrad.compare.rescue import RescueCell, Survival, matrix_axes, rescue_matrix, survival
from altgrad.compare.row import Row, Unpaired, loss_unit
from altgrad.compare.shown_rows import Shown, shown_rows
from altgrad.compare.statistics import PairedGap, collapse_step, furthest, paired_gap, ranking

__all__ = [
    "RATE_HEADS",
    "STEP_COLUMNS",
    "SWEEPS_HEADS",
    "GroupDifference",
    "PairedGap",
    "Parity",
    "ParityLine",
    "RateLine",
    "RescueCell",
    "Row",
    "Settings",
    "Shown",
    "Survival",
    "SweepsLine",
    "Terms",
    "Unpaired",
    "all_pairs",
    "by_group",
    "by_task",
    "collapse_step",
    "comparison",
    "comparison_csv",
    "comparison_markdown",
    "comparison_table",
    "config_difference",
    "difference_curve",
    "furthest",
    "group_difference",
    "loss_unit",
    "matrix_axes",
    "pair",
    "paired_gap",
    "paired_runs",
    "pairs_note",
    "parity_lines",
    "parity_markdown",
    "parity_note",
    "parity_table",
    "planned_terms",
    "ranking",
    "rate_lines",
    "rates_markdown",
    "rates_note",
    "read_row",
    "rescue_matrix",
    "settings_of",
    "shown_rows",
    "survival",
    "sweeps_lines",
    "sweeps_table",
    "tasks_note",
    "write_comparison",
]
