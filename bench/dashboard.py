"""Measures the server side of the dashboard on generated results, which are kept in build/ for later measurements.

    python -m bench.dashboard [RUNS] [STEPS]

Cold: a server that has imported everything opens the sweep.  Warm: a viewer clicks.  Goals for 500 runs x 10,000 steps:
cold 3 s, warm 0.3 s, a refresh without new data 10 ms, 60 curves on one chart 1.5 s; 10,000 runs can still be listed.
The rows of `make bench` count processor seconds of all threads, so that a busy machine gives the same numbers.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from altgrad.compare import STEP_COLUMNS, Row
from altgrad.results import SCHEMAS
from altgrad.show.drawn_curves import View, line
from altgrad.show.sweep_progress import newest_events, progress
from altgrad.storage.folder import Folder
from dashboard.data.sweep_frame import CELL_COLUMNS, group_frame, run_frame
from dashboard.data.watched_sweep import WatchedSweep
from dashboard.figures.curve_figures import curves_figure
from dashboard.page_context import PageContext
from tests.support.results.generated_results import large_sweep

Result = TypeVar("Result")
RUNS, STEPS = 500, 10_000
_CURVES = 60
_MANY_RUNS = 10_000
_KEPT = Path(__file__).parent.parent / "build" / "bench-dashboard"


def results(runs: int = RUNS, steps: int = STEPS) -> Folder:
    """A generated sweep; it is generated again only if the schema has changed or the generation was interrupted."""
    columns = hashlib.sha256(str(SCHEMAS["steps"]).encode()).hexdigest()[:8]
    name = f"{runs}x{steps}-{columns}"
    if not (_KEPT / name / "complete").exists():
        shutil.rmtree(_KEPT / name, ignore_errors=True)
        large_sweep(_KEPT, runs, steps, name=name)
        (_KEPT / name / "complete").touch()
    return Folder.at(_KEPT / name)


class Stopwatch:
    """Times steps and collects them for a table."""

    def __init__(self) -> None:
        self.table = Table("What", "Seconds", "of processors", "Goal", title="Dashboard, server side")
        for column in self.table.columns[1:]:
            column.justify = "right"

    def time(self, what: str, action: Callable[[], Result], goal: float | None = None) -> Result:
        """Run `action` once, add its times to the table, and return its result."""
        begun, busy = time.perf_counter(), time.process_time()
        result = action()
        took, worked = time.perf_counter() - begun, time.process_time() - busy
        self.table.add_row(what, f"{took:.3f}", f"{worked:.3f}", "" if goal is None else f"{goal:g}")
        return result


def processor_seconds(action: Callable[[], object], times: int) -> list[float]:
    """Processor seconds of this process, over all its threads, for each of `times` calls."""
    taken = []
    for _ in range(times):
        begun = time.process_time()
        action()
        taken.append(time.process_time() - begun)
    return taken


def cold_overview(times: int) -> list[float]:
    """A server that has just started shows the overview."""
    folder = results()
    return processor_seconds(lambda: open_sweep(folder), times)


def cold_table(times: int) -> list[float]:
    """A server that has just started shows the sweep page."""
    folder = results()
    return processor_seconds(lambda: open_table(folder), times)


def warm_table(times: int) -> list[float]:
    """A click on the sweep page."""
    sweep, rows = opened()
    run_frame(rows, sweep, sparklines=False)
    return processor_seconds(lambda: run_frame(rows, sweep, sparklines=False), times)


def nothing_new(times: int) -> list[float]:
    """A refresh that finds no new data in the folder."""
    sweep, _ = opened()
    return processor_seconds(lambda: look_again(sweep), times)


def sixty_curves(times: int) -> list[float]:
    """60 curves of 10,000 steps on one chart, without the rest of the page."""
    sweep, rows = open_sweep(results())  # opened anew, because only the first drawing reads the files
    return processor_seconds(lambda: curves(sweep, rows), 1)


@cache
def opened() -> tuple[WatchedSweep, list[Row]]:
    """The sweep of the rows, opened once per process."""
    return open_sweep(results())


def open_sweep(folder: Folder) -> tuple[WatchedSweep, list[Row]]:
    """Open the overview, as for the first viewer of a server."""
    sweep = WatchedSweep(folder)
    sweep.refresh()
    rows = PageContext(sweep, pages={}).rows
    progress(rows, sweep.runs, sweep.planned, time.time())
    newest_events(sweep.runs, 12)
    return sweep, rows


def open_table(folder: Folder) -> None:
    """Open the sweep page, as for the first viewer of a server."""
    sweep = WatchedSweep(folder)
    sweep.refresh()
    sweep.prefetch(sweep.runs, "steps", [*STEP_COLUMNS, *CELL_COLUMNS])
    run_frame(PageContext(sweep, pages={}).rows, sweep, sparklines=False)


def look_again(sweep: WatchedSweep) -> None:
    """Refresh the sweep, which every viewer's page does every two seconds."""
    sweep._looked = -math.inf  # otherwise the sweep would reuse a refresh of the last second
    sweep.refresh()


def curves(sweep: WatchedSweep, rows: list[Row]) -> str:
    """A chart in the form that is sent to the browser."""
    runs, view = {run.name: run for run in sweep.runs}, View("loss", buckets=150)
    lines = [line(row, runs[row.run], view) for row in rows[:_CURVES]]
    return str(curves_figure([one for one in lines if one is not None], view).to_json())


def main(runs: int = RUNS, steps: int = STEPS) -> None:
    """Generate the results if needed, measure, and print the table."""
    console, watch = Console(), Stopwatch()
    console.print(f"{runs} runs of {steps} steps and {_MANY_RUNS} short ones, in {_KEPT} ...")
    large, many = results(runs, steps), results(_MANY_RUNS, 2)
    watch.time(f"sweep page of {runs} runs, cold", lambda: open_table(large), 3)
    sweep, rows = watch.time(f"overview of {runs} runs, cold", lambda: open_sweep(large), 3)
    watch.time("nothing new", lambda: look_again(sweep), 0.01)
    run_frame(rows, sweep, sparklines=runs <= 200)
    watch.time("sweep table, warm", lambda: run_frame(rows, sweep, sparklines=runs <= 200), 0.3)
    watch.time("groups, warm", lambda: group_frame(rows), 0.3)
    watch.time(f"{_CURVES} curves on one chart", lambda: curves(sweep, rows), 1.5)
    crowd, _ = watch.time(f"overview of {_MANY_RUNS} runs, cold", lambda: open_sweep(many))
    watch.time(f"nothing new in {_MANY_RUNS} runs", lambda: look_again(crowd))
    console.print(watch.table)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
