"""Stores the gap to the baseline in the rows of a run after both runs have ended, whichever ended first.

A run that trains at the same time as its baseline cannot compute its gap, so its column `gap_to_baseline` is empty; the
driver of the sweep follows the two curves, but does not write into the run's rows.  When both runs have ended, the gap
is computed from the stored losses and replaces the empty column.  It depends on the two curves alone, so in a run that
had the losses of its baseline from the start it changes nothing.
"""

from __future__ import annotations

import pyarrow as pa

from altgrad.collapse.detector import gap_to_baseline
from altgrad.config.train_config import TrainConfig
from altgrad.results.parts import read_rows, replace_rows
from altgrad.results.reading.ancestors import losses_before, losses_by_step, lost_ancestor
from altgrad.results.reading.common_start import other_beginning
from altgrad.results.records import read_start
from altgrad.storage.folder import Folder

COLUMN = "gap_to_baseline"


def store_gap(config: TrainConfig, run: Folder, baseline: Folder) -> str | None:
    """Fill the column `gap_to_baseline` of a run; both runs must have ended.

    Returns None, or one sentence why there is no gap.  Raises RecordError for an unusable `run.json`, OSError if
    storage refuses.
    """
    start = read_start(run)
    difference = other_beginning(read_start(baseline), start)
    if difference is not None:
        return f"{run.name}: no gap to {baseline.name}, since it began with {difference}"
    for one in (run, baseline):
        if lost := lost_ancestor(one):
            return f"{run.name}: no gap to {baseline.name}, since {lost}, from which {one.name} branched, is not there"
    rows, broken = read_rows(run, "steps")
    if broken:
        return f"{run.name}: no gap to {baseline.name}, since {len(broken)} of its parts cannot be read"
    gap = gap_to_baseline(config, start.get("vocabulary"), losses_by_step(baseline))
    for step, loss in losses_before(run).items():
        gap.update(step, loss)
    own = zip(rows["step"].to_pylist(), rows["loss"].to_pylist(), strict=True)
    column = pa.array([None if loss is None else gap.update(step, loss) for step, loss in own], pa.float64())
    if rows.num_rows and not column.equals(rows[COLUMN].combine_chunks()):
        replace_rows(run, "steps", rows.set_column(rows.column_names.index(COLUMN), COLUMN, column))
    return None
