"""How fast the dashboard is, server side, on generated results.

    python -m bench.dashboard [RUNS] [STEPS]

Cold: a server that has just started opens the sweep.  Warm: a viewer clicks.  Goals for 500 runs x 10,000 steps:
cold 3 s, warm 0.3 s, a look that finds nothing new 10 ms, 60 curves on one chart 1.5 s; 10,000 runs still list.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from altgrad.compare import Row
from altgrad.lines import View, line
from altgrad.storage import Folder
from dashboard.charts import curves_figure
from dashboard.context import Context
from dashboard.sweep import Sweep
from dashboard.table import group_frame, run_frame
from tests.generated_results import large_sweep

Result = TypeVar("Result")
_CURVES = 60
_MANY_RUNS = 10_000


class Stopwatch:
    """Times steps and collects them for a table."""

    def __init__(self) -> None:
        self.table = Table("What", "Seconds", "Goal", title="Dashboard, server side")
        self.table.columns[1].justify = self.table.columns[2].justify = "right"

    def time(self, what: str, action: Callable[[], Result], goal: float | None = None) -> Result:
        """Run it once and note how long it took."""
        begun = time.perf_counter()
        result = action()
        self.table.add_row(what, f"{time.perf_counter() - begun:.3f}", "" if goal is None else f"{goal:g}")
        return result


def open_sweep(folder: Folder) -> tuple[Sweep, list[Row]]:
    """What the first viewer of a server waits for."""
    sweep = Sweep(folder)
    sweep.refresh()
    return sweep, Context(sweep, pages={}).rows


def look_again(sweep: Sweep) -> None:
    """What every viewer asks for every two seconds."""
    sweep._looked = -math.inf  # or one look would serve several viewers
    sweep.refresh()


def curves(sweep: Sweep, rows: list[Row]) -> str:
    """A chart as it is sent to the browser."""
    runs, view = {run.name: run for run in sweep.runs}, View("loss", buckets=150)
    lines = [line(row, runs[row.run], view) for row in rows[:_CURVES]]
    return str(curves_figure([one for one in lines if one is not None], view).to_json())


def main(runs: int = 500, steps: int = 10_000) -> None:
    """Generate, measure, print."""
    console, watch = Console(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"generating {runs} runs of {steps} steps and {_MANY_RUNS} short ones ...")
        large = large_sweep(Path(folder), runs, steps)
        many = large_sweep(Path(folder), _MANY_RUNS, 2, name="many")
        sweep, rows = watch.time(f"open {runs} runs, cold", lambda: open_sweep(large), 3)
        watch.time("nothing new", lambda: look_again(sweep), 0.01)
        watch.time("sweep table, first time", lambda: run_frame(rows, sweep, sparklines=runs <= 200))
        watch.time("sweep table, warm", lambda: run_frame(rows, sweep, sparklines=runs <= 200), 0.3)
        watch.time("groups, warm", lambda: group_frame(rows), 0.3)
        watch.time(f"{_CURVES} curves on one chart", lambda: curves(sweep, rows), 1.5)
        crowd, _ = watch.time(f"open {_MANY_RUNS} runs, cold", lambda: open_sweep(many))
        watch.time(f"nothing new in {_MANY_RUNS} runs", lambda: look_again(crowd))
    console.print(watch.table)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
