"""The data of the page, read from a sweep's folder: each part of each run is opened once.

A run that cannot be read is reported in a sentence; the other runs are shown all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from altgrad.compare import STEP_COLUMNS, Row, Shown, Unpaired, pair, planned_terms, read_row, shown_rows
from altgrad.config.train_config import BUILT_IN_TASK
from altgrad.results import Run, TableName, list_runs, read_rows
from altgrad.results.reading.own_metrics import own_names
from altgrad.results.schema import KEY_COLUMNS
from altgrad.show.drawn_curves import Line, View, line
from altgrad.storage.folder import Folder

METRIC = "loss"
_HELD: Mapping[TableName, Sequence[str]] = {
    "steps": [METRIC, *STEP_COLUMNS],
    "events": ["time", "kind", "detail"],
    "own": ["value"],
}
_READERS = 8
_POINTS = 30_000  # points of all lines together: more are not visible and slow to draw
_MOST_BUCKETS, _FEWEST_BUCKETS = 400, 40


@dataclass(frozen=True)
class HeldRun(Run):
    """A run with the columns that the page needs in memory; other columns are read from the folder when needed."""

    held: Mapping[TableName, pa.Table]
    damaged: Sequence[str]

    def table(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        if name in self.held and columns is not None and set(columns) <= set(_HELD[name]):
            return self.held[name].select([*KEY_COLUMNS[name], *columns])
        return super().table(name, columns)


@dataclass(frozen=True)
class Contents:
    """The contents of a sweep's folder.

    `shown`: the rows of the comparison, in its order.  `runs`: by name, also the hidden ones.  `lines`: run name -> its
    loss curve, if it has one.  `own`: metric of the runs' tasks -> the same of it.  `broken`: folder name -> why it
    cannot be read.  `damaged`: run name -> its parts that cannot be read.
    """

    sweep: Folder
    shown: Shown
    runs: Mapping[str, HeldRun]
    lines: Mapping[str, Line]
    own: Mapping[str, Mapping[str, Line]]
    broken: Mapping[str, str]
    damaged: Mapping[str, Sequence[str]]

    @property
    def rows(self) -> list[Row]:
        """The rows that the page shows."""
        return self.shown.rows


def read_contents(sweep: Folder, margin: float | None = None, with_hidden: bool = False) -> Contents:
    """Read everything that the page shows of a sweep's runs.

    `margin`: of the parity verdicts, in the unit of the losses; default: the sweep's own.  `with_hidden`: show the runs
    that people have hidden, too.
    """
    found, broken = list_runs(sweep)
    with ThreadPoolExecutor(_READERS) as pool:
        loaded = list(pool.map(_load, found))
    runs: dict[str, HeldRun] = {}
    members: list[Unpaired] = []
    for run, result in zip(found, loaded, strict=True):
        if isinstance(result, str):
            broken[run.folder.name] = result
        else:
            held, member = result
            runs[held.name] = held
            members.append(member)
    rows = pair(members, planned_terms(sweep, margin))
    view = View(METRIC, buckets=max(_FEWEST_BUCKETS, min(_MOST_BUCKETS, _POINTS // max(len(rows), 1))))
    names = sorted({name for run in runs.values() for name in own_names(run)})
    few = replace(view, buckets=max(_FEWEST_BUCKETS, view.buckets // max(len(names), 1)))
    return Contents(
        sweep=sweep,
        shown=shown_rows(sweep, rows, with_hidden),
        runs=runs,
        lines=_lines(rows, runs, view),
        own={name: _lines(rows, runs, replace(few, metric=name)) for name in names},
        broken=broken,
        damaged={name: run.damaged for name, run in runs.items() if run.damaged},
    )


def _lines(rows: Sequence[Row], runs: Mapping[str, HeldRun], view: View) -> dict[str, Line]:
    """Run name -> its line; runs that have not measured the metric are left out."""
    drawn = {row.run: line(row, runs[row.run], view) for row in rows}
    return {name: one for name, one in drawn.items() if one is not None}


def _load(run: Run) -> tuple[HeldRun, Unpaired] | str:
    """The run and its row, or why they cannot be read."""
    try:
        held, damaged = {}, []
        for name, columns in _HELD.items():
            if name == "own" and run.config.get("task", BUILT_IN_TASK) == BUILT_IN_TASK:
                continue
            held[name], broken = read_rows(run.folder, name, columns)
            damaged += [f"{name}/{part} ({reason})" for part, reason in broken.items()]
        loaded = HeldRun(run.folder, run.info, run.end, held, damaged)
        return loaded, read_row(loaded)
    except (ValueError, KeyError, TypeError, OSError) as error:
        return str(error)
