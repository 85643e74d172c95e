"""The loss curves of a board: thinned to what a small drawing can show, and remembered until their run changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from altgrad.compare import Row
from altgrad.show.drawn_curves import Line, View, line
from dashboard.data.watched_sweep import WatchedSweep

_VIEW = View("loss", buckets=60)


def board_lines(sweep: WatchedSweep, rows: Iterable[Row]) -> dict[str, Line]:
    """Run name -> its loss curve, if it has one."""
    lines: dict[str, Line] = {}
    for row in rows:
        run = sweep.run(row.run)
        if run is None:
            continue
        drawn = sweep.remembered(run, "board line", partial(line, row, run, _VIEW))
        if drawn is not None:
            lines[row.run] = replace(drawn, row=row)
    return lines
