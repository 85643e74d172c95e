"""The state of a sweep, read from its folder alone on any machine that sees the storage, without Ray or the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from altgrad.results import Run, life_of, list_runs, read_lease, read_plan, read_rows
from altgrad.storage.folder import Folder
from altgrad.text.number_text import ABSENT, duration, number
from altgrad.text.terminal_output import cell

_COLUMNS = ("loss", "gap_to_baseline", "stall_rate", "overflow_rate", "elapsed_seconds")
_NEWEST_PARTS = 4  # parts of a run that are read: the table shows the newest values only
_READERS = 16
_HEADS = ("Run", "Format", "Step", "Loss", "Training vs BF16", "Stalled", "Overflow", "Status", "ETA")
_STYLE = {"running": "cyan", "completed": "green", "collapsed": "red", "failed": "bold red", "killed": "yellow"}


@dataclass(frozen=True)
class RunState:
    """The newest values of a run; a metric is absent if it was not measured, or is not in the run's newest parts."""

    run: str
    format: str
    status: str
    step: int
    max_steps: int
    newest: Mapping[str, float]
    reason: str = ""
    is_silent: bool = False  # running, but its lease was not renewed in time
    damage: tuple[str, ...] = ()  # parts that could not be read, a sentence each

    @property
    def eta(self) -> float | None:
        """Seconds until the last step at the run's average pace; None if it does not train or the pace is unknown."""
        seconds = self.newest.get("elapsed_seconds")
        if self.status != "running" or seconds is None or not self.step:
            return None
        return (self.max_steps - self.step) * seconds / self.step

    def cells(self) -> tuple[str, ...]:
        """The cells of the run's row, in the order of the table's headings."""
        gap = self.newest.get("gap_to_baseline")
        return (
            self.run,
            self.format,
            f"{self.step}/{self.max_steps}",
            number(self.newest.get("loss"), 4),
            ABSENT if gap is None else f"{gap:+.3f}",
            _percent(self.newest.get("stall_rate")),
            _percent(self.newest.get("overflow_rate")),
            f"{self.status}: {self.reason}" if self.reason else f"{self.status}{', silent' * self.is_silent}",
            ABSENT if self.eta is None else duration(round(self.eta)),
        )


def sweep_state(sweep: Folder) -> list[RunState]:
    """The state of every planned run of a sweep, in the planned order.

    Raises FileNotFoundError if there is no sweep.json, RecordError if it is unusable.
    """
    planned = read_plan(sweep)["runs"]
    runs, broken = list_runs(sweep)
    found = {run.folder.name: run for run in runs}
    with ThreadPoolExecutor(_READERS) as pool:
        states = dict(zip(found, pool.map(_state, found.values()), strict=True))
    return [states.get(plan["run"]) or _waiting(plan, broken.get(plan["run"])) for plan in planned]


def goes_on(sweep: Folder, states: Sequence[RunState]) -> bool:
    """Whether the sweep will write more: a run trains, or the sweep's own process is alive and may start one."""
    if any(state.status == "running" for state in states):
        return True
    lease = read_lease(sweep)
    return lease is not None and life_of(sweep, lease) != "dead"


def status_table(states: list[RunState]) -> Table:
    """A table with one row per run; its caption counts the runs by status."""
    counts = Counter(state.status for state in states)
    caption = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    table = Table(caption=caption, caption_justify="left")
    for index, head in enumerate(_HEADS):
        table.add_column(head, justify="right" if index in (2, 3, 4, 5, 6, 8) else "left", no_wrap=index != 7)
    for state in states:
        table.add_row(*map(cell, state.cells()), style=_STYLE.get(state.status, ""))
    return table


def _state(run: Run) -> RunState:
    try:
        table, broken = read_rows(run.folder, "steps", _COLUMNS, newest=_NEWEST_PARTS)
    except OSError as error:
        return RunState(run.folder.name, run.config["format"], "unreadable", 0, run.config["max_steps"], {}, str(error))
    measured = {name: table[name].drop_null() for name in table.column_names}
    newest = {name: values[-1].as_py() for name, values in measured.items() if len(values)}
    summary = {} if run.end is None else run.end["summary"]
    reason = run.verdict.sentence() if run.verdict is not None else summary.get("error") or summary.get("reason") or ""
    step, config = int(newest.get("step", 0)), run.config
    damage = tuple(f"{run.folder.name}: steps/{part} is left out: {why}" for part, why in broken.items())
    silent = run.end is None and run.life == "silent"
    max_steps = config["max_steps"]
    return RunState(run.folder.name, config["format"], run.status, step, max_steps, newest, reason, silent, damage)


def _waiting(plan: Mapping[str, Any], broken: str | None) -> RunState:
    config = plan["config"]
    status = "waiting" if broken is None else "unreadable"
    return RunState(plan["run"], config["format"], status, 0, config["max_steps"], {}, broken or "")


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{number(100 * share, 3)} %"
