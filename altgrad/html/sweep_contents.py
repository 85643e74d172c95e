"""What the page is made of, read from a sweep's folder once: each part of each run is opened a single time.

A run that cannot be read becomes a sentence and does not keep the others from being shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from altgrad.compare import STEP_COLUMNS, Row, Unpaired, pair, read_row
from altgrad.results import Run, TableName, list_runs, read_rows
from altgrad.show.drawn_curves import Line, View, line
from altgrad.storage.folder import Folder

METRIC = "loss"
_HELD: Mapping[TableName, Sequence[str]] = {
    "steps": [METRIC, *STEP_COLUMNS],
    "events": ["time", "kind", "detail"],
}
_READERS = 8
_POINTS = 30_000  # over all lines: more are neither seen nor quickly drawn
_MOST_BUCKETS, _FEWEST_BUCKETS = 400, 40


@dataclass(frozen=True)
class HeldRun(Run):
    """A run with the columns in memory that the page needs; others are read when asked for."""

    held: Mapping[TableName, pa.Table]
    damaged: Sequence[str]

    def table(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        if name in self.held and columns is not None and set(columns) <= set(_HELD[name]):
            return self.held[name].select(["step", "attempt", *columns])
        return super().table(name, columns)


@dataclass(frozen=True)
class Contents:
    """A sweep as it lies in its folder.

    `rows` are the comparison's, in its order; `lines` the loss curves of the rows that have one.  `broken`: folder
    -> why it cannot be read; `damaged`: run -> its parts that cannot.
    """

    sweep: Folder
    rows: list[Row]
    runs: Mapping[str, HeldRun]
    lines: Mapping[str, Line]
    broken: Mapping[str, str]
    damaged: Mapping[str, Sequence[str]]


def read_contents(sweep: Folder) -> Contents:
    """Everything the page says about a sweep's runs."""
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
    rows = pair(members)
    view = View(METRIC, buckets=max(_FEWEST_BUCKETS, min(_MOST_BUCKETS, _POINTS // max(len(rows), 1))))
    drawn = {row.run: line(row, runs[row.run], view) for row in rows}
    return Contents(
        sweep=sweep,
        rows=rows,
        runs=runs,
        lines={name: one for name, one in drawn.items() if one is not None},
        broken=broken,
        damaged={name: run.damaged for name, run in runs.items() if run.damaged},
    )


def _load(run: Run) -> tuple[HeldRun, Unpaired] | str:
    """The run and its row, or why they cannot be had."""
    try:
        held, damaged = {}, []
        for name, columns in _HELD.items():
            held[name], broken = read_rows(run.folder, name, columns)
            damaged += [f"{name}/{part} ({reason})" for part, reason in broken.items()]
        loaded = HeldRun(run.folder, run.info, run.end, held, damaged)
        return loaded, read_row(loaded)
    except (ValueError, KeyError, TypeError, OSError) as error:
        return str(error)
