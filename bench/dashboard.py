"""Measures the server side of the dashboard on generated results, which are kept in build/ for later measurements.

    python -m bench.dashboard [RUNS] [STEPS]

Cold: a server that has imported everything opens the sweep on a page.  Warm: a viewer clicks on it.  Goals for 500 runs
x 10,000 steps: cold 3 s, warm 0.3 s, a refresh without new data 10 ms, 60 curves on one chart 1.5 s.  1,000 runs are
shown for comparison, and 10,000 runs can still be listed.  Pages are run whole, by Streamlit itself, without a browser;
what that takes for a sweep of ten short runs is printed first, because it is not the dashboard's doing.
The rows of `make bench` count processor seconds of all threads, which depend little on what else the machine does; on
one that is overloaded several times over they are up to twice as many.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import streamlit as st
from rich.console import Console
from rich.table import Table

from altgrad.compare import Row
from altgrad.results import SCHEMAS, Verdict
from altgrad.show.drawn_curves import View, line
from altgrad.storage.folder import Folder
from dashboard.data.watched_sweep import WatchedSweep
from dashboard.figures.curve_figures import curves_figure
from dashboard.page_context import PageContext
from tests.support.dashboard_pages import PAGES, show
from tests.support.results.generated_results import InventedRun, large_sweep, write_run

Result = TypeVar("Result")
RUNS, STEPS = 500, 10_000
_CURVES = 60
_MORE_RUNS, _MANY_RUNS = 1000, 10_000
_KEPT = Path(__file__).parent.parent / "build" / "bench-dashboard"


def results(runs: int = RUNS, steps: int = STEPS) -> Folder:
    """A generated sweep; it is generated again only if the schema has changed or the generation was interrupted."""
    columns = hashlib.sha256(str(SCHEMAS["steps"]).encode()).hexdigest()[:8]
    name = f"{runs}x{steps}-{columns}"
    if not (_KEPT / name / "complete").exists():
        shutil.rmtree(_KEPT / name, ignore_errors=True)
        large_sweep(_KEPT, runs, steps, name=name)
        (_KEPT / name / "complete").touch()
    folder = Folder.at(_KEPT / name)
    frozen = InventedRun("E7M0", seed=999, steps=steps, stalls_from=steps // 2)  # the pages on one run open with it
    if steps >= 1000 and not folder.has(f"{frozen.name}/end.json"):
        verdict = Verdict(9 * steps // 10, "stalled", "realised_displacement", 0.02, 0.1, "frozen in 3 windows")
        write_run(folder, frozen, "collapsed", verdict.step, verdict, rows_per_part=steps)
    return folder


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


def cold(page: str) -> Callable[[int], list[float]]:
    """A server that has just started shows a page."""

    def measured(times: int) -> list[float]:
        folder = results()
        prepare()
        return processor_seconds(lambda: open_page(folder, page, is_new=True), times)

    return measured


def warm(page: str) -> Callable[[int], list[float]]:
    """A click on a page that somebody has seen before."""

    def measured(times: int) -> list[float]:
        folder = results()
        open_page(folder, page)
        return processor_seconds(lambda: open_page(folder, page), times)

    return measured


def nothing_new(times: int) -> list[float]:
    """A refresh that finds no new data in the folder."""
    sweep = opened(results().path)
    return processor_seconds(lambda: look_again(sweep), times)


def sixty_curves(times: int) -> list[float]:
    """60 curves of 10,000 steps on one chart, without the rest of the page."""
    sweep = WatchedSweep(results())  # opened anew, because only the first drawing reads the files
    sweep.refresh()
    rows = PageContext(sweep, pages={}).rows
    return processor_seconds(lambda: curves(sweep, rows), 1)


@cache
def opened(path: str) -> WatchedSweep:
    """The sweep at that path, opened once per process."""
    sweep = WatchedSweep(Folder.at(path))
    sweep.refresh()
    return sweep


@cache
def prepare() -> float:
    """Import what the pages need, and show each of a small sweep; returns the processor seconds of a click on it."""
    folder = results(10, 100)
    for page in PAGES:
        open_page(folder, page)
    return min(processor_seconds(lambda: open_page(folder, "overview"), 3))


def open_page(folder: Folder, page: str, is_new: bool = False) -> None:
    """Run a page whole; `is_new`: on a server that holds nothing of any sweep yet."""
    if is_new:
        st.cache_resource.clear()
    app = show(folder.parent.path, page, sweep=folder.name)
    if app.exception:
        raise RuntimeError(f"page {page}: {app.exception[0].value}")


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
    console.print(f"{runs} runs of {steps} steps, {_MORE_RUNS} and {_MANY_RUNS} shorter ones, in {_KEPT} ...")
    large, more, many = results(runs, steps), results(_MORE_RUNS, 1000), results(_MANY_RUNS, 2)
    console.print(f"a click on a sweep of ten short runs: {prepare():.3f} s")
    for folder, pages in ((large, PAGES), (more, PAGES), (many, ("overview", "sweep"))):
        for page in pages:
            goals = (3, 0.3) if folder == large else (None, None)
            what = f"{page} of {folder.name.partition('x')[0]} runs"
            watch.time(f"{what}, cold", partial(open_page, folder, page, True), goals[0])
            watch.time(f"{what}, warm", partial(open_page, folder, page), goals[1])
        sweep = opened(folder.path)
        watch.time(
            f"nothing new in {len(sweep.runs)} runs", partial(look_again, sweep), 0.01 if folder == large else None
        )
    sweep = opened(large.path)
    rows = PageContext(sweep, pages={}).rows
    watch.time(f"{_CURVES} curves on one chart", lambda: curves(sweep, rows), 1.5)
    console.print(watch.table)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
