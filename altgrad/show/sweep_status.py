"""The state of a sweep, read from its folder alone on any machine that sees the storage, without Ray or the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from altgrad.compare.pairing import DEFAULTS, Settings, settings_of
from altgrad.results import Run, life_of, list_runs, read_events, read_lease, read_plan, read_rows
from altgrad.show.live_table import LIVE_METRICS, LiveRow, LiveTable
from altgrad.storage.folder import Folder

_COLUMNS = (*LIVE_METRICS, "elapsed_seconds")
_NEWEST_PARTS = 4  # parts of a run that are read: the table shows the newest values only
_READERS = 16
_FIRST = {
    status: place
    for place, status in enumerate(("running", "unreadable", "failed", "killed", "collapsed", "stopped", "completed"))
}  # where not all runs have room


@dataclass(frozen=True)
class RunState(LiveRow):
    """The row of a run in the table; a metric is absent if it was not measured, or is not in the run's newest parts."""

    damage: tuple[str, ...] = ()  # parts that could not be read, a sentence each


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


def status_table(states: Sequence[RunState], lines: int | None = None) -> LiveTable:
    """The live table; with `lines` only the runs that have room: those that train, then those that went wrong."""
    order = sorted(range(len(states)), key=lambda place: _FIRST.get(states[place].status, len(_FIRST)))
    return LiveTable(states, lines, order)


def _state(run: Run) -> RunState:
    config = run.config
    name, fmt, max_steps = run.folder.name, config["format"], config["max_steps"]
    try:
        table, broken = read_rows(run.folder, "steps", _COLUMNS, newest=_NEWEST_PARTS)
        happened = [] if run.end is not None else read_events(run)
    except OSError as error:
        return RunState(name, fmt, "unreadable", 0, max_steps, {}, str(error))
    measured = {column: table[column].drop_null() for column in table.column_names}
    newest = {column: values[-1].as_py() for column, values in measured.items() if len(values)}
    summary = {} if run.end is None else run.end["summary"]
    reason = run.verdict.sentence() if run.verdict is not None else summary.get("error") or summary.get("reason") or ""
    step = int(newest.get("step", run.begins_after))
    return RunState(
        name,
        fmt,
        run.status,
        step,
        max_steps,
        newest,
        reason,
        is_baseline=settings_of(run).is_baseline,
        is_silent=run.end is None and run.life == "silent",
        eta=seconds_left(run.status, step - run.begins_after, max_steps - step, newest.get("elapsed_seconds")),
        warning=next(
            (str(event.detail.get("sentence", "")) for event in happened if event.kind == "collapse_warning"), ""
        ),
        loss_unit=run.loss_unit,
        damage=tuple(f"{name}: steps/{part} is left out: {why}" for part, why in broken.items()),
    )


def seconds_left(status: str, done: int, to_come: int, seconds: float | None) -> float | None:
    """Seconds until the last step at the run's average pace; None if it does not train or the pace is unknown.

    `seconds`: of the training of the `done` steps.
    """
    if status != "running" or seconds is None or done <= 0:
        return None
    return to_come * seconds / done


def _waiting(plan: Mapping[str, Any], broken: str | None) -> RunState:
    config = plan["config"]
    status = "waiting" if broken is None else "unreadable"
    is_baseline = Settings({**DEFAULTS, **config}, plan.get("intervention") or "none").is_baseline
    return RunState(plan["run"], config["format"], status, 0, config["max_steps"], {}, broken or "", is_baseline)
