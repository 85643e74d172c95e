"""Progress of a sweep: steps done and to do, compute spent, the best group, the newest events."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altgrad.compare import Row, by_group, by_task, ranking
from altgrad.events import Event, kind_of
from altgrad.results import RecordError, Run, particulars_of, read_plan
from altgrad.results.reading.events import event_rows
from altgrad.storage.folder import Folder
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import duration, number

_BETWEEN_TRIALS = 600.0  # seconds within which a live sweep starts its next trial, including a first compilation


@dataclass(frozen=True)
class SweepProgress:
    """Steps trained and planned, seconds of training spent and saved, seconds left (None: unknown)."""

    steps: int
    planned_steps: int
    spent: float
    saved: float
    seconds_left: float | None
    is_over: bool


def progress(rows: Sequence[Row], runs: Sequence[Run], planned_runs: int | None, now: float) -> SweepProgress:
    """Progress at time `now` (seconds since 1970).

    A run that has ended counts with the steps that it trained; a planned run that has not started counts with the mean
    length of the started ones.  Steps before the checkpoint from which a run goes on are not counted.  The pace is that
    of the last attempts: their steps divided by the time in which the sweep trained (see `_seconds_trained`).  If no
    run trains, and none has started or ended for ten minutes, the sweep was stopped and the time left is None.
    """
    steps = sum(row.own_steps for row in rows)
    to_come = sum(row.max_steps - row.step for row in rows if row.status == "running")
    not_begun = max((planned_runs or 0) - len(rows), 0)
    if rows:
        to_come += round(not_begun * sum(row.max_steps - row.begins_after for row in rows) / len(rows))
    is_over = to_come == 0 and not any(row.status == "running" for row in rows)
    trained = _seconds_trained(rows, runs, now)
    pace = sum(map(_steps_now, rows)) / trained if trained > 0 else 0.0
    goes_on = any(row.status == "running" for row in rows) or now - _last_change(runs) < _BETWEEN_TRIALS
    return SweepProgress(
        steps=steps,
        planned_steps=steps + to_come,
        spent=sum(row.seconds or 0.0 for row in rows),
        saved=sum(row.seconds_saved or 0.0 for row in rows),
        seconds_left=to_come / pace if pace > 0 and goes_on else None,
        is_over=is_over,
    )


def _steps_now(row: Row) -> float:
    """The steps of a run's last attempt; those of the attempts before it took time that is not counted."""
    if not row.earlier or not row.seconds or row.seconds_now is None:
        return float(row.own_steps)
    return row.own_steps * min(row.seconds_now / row.seconds, 1.0)


def _seconds_trained(rows: Sequence[Row], runs: Sequence[Run], now: float) -> float:
    """Seconds in which a last attempt trained, and the pauses of at most ten minutes between them and until now.

    A longer pause is that of a sweep which was interrupted and resumed later.
    """
    trains = {row.run for row in rows if row.status == "running"}
    spans = [(float(run.info["started"]), now if run.name in trains else min(_last_change([run]), now)) for run in runs]
    total, reached = 0.0, min((begin for begin, _ in spans), default=now)
    for begin, end in (*sorted(spans), (now, now)):
        pause = begin - reached
        total += pause if 0 < pause <= _BETWEEN_TRIALS else 0.0
        begin = max(begin, reached)
        total, reached = total + max(end - begin, 0.0), max(end, begin)
    return total


def _last_change(runs: Iterable[Run]) -> float:
    """The last time at which a run started or ended; -inf without runs."""
    times = [float((run.end or {}).get("ended") or run.info["started"]) for run in runs]
    return max(times, default=float("-inf"))


def compute_sentence(rows: Sequence[Row]) -> str | None:
    """Device-hours of training spent, and saved by early stopping, by kind of device; None if no run has a record."""
    kinds = {kind for row in rows for kind in (row.device, *row.hours) if kind is not None}
    parts = []
    for device in sorted(kinds):
        spent = sum(row.hours.get(device, 0.0) for row in rows)
        saved = sum(row.device_hours_saved or 0.0 for row in rows if row.device == device)
        parts.append(f"{number(spent, 3)} {device}-hours spent, {number(saved, 3)} saved by early stopping")
    if not parts:
        return None
    unknown = sum(row.device is None for row in rows)
    without = (
        f"{unknown} run has no record of its CPUs" if unknown == 1 else f"{unknown} runs have no record of their CPUs"
    )
    return "Compute: " + "; ".join(parts) + (f"; {without}" if unknown else "")


def spent_and_saved(rows: Sequence[Row], state: SweepProgress) -> str:
    """The compute spent and saved in one sentence: device-hours, or training time where no run has a record of them."""
    return compute_sentence(rows) or (
        f"Training time: {duration(state.spent)}, summed over runs; {duration(state.saved)} saved by early stopping"
    )


def planned_runs(sweep: Folder) -> int | None:
    """The number of runs in a sweep's plan; None if its `sweep.json` is missing or unusable."""
    try:
        return len(read_plan(sweep)["runs"])
    except (RecordError, OSError):
        return None


def best_sentence(rows: Sequence[Row]) -> str:
    """The group with the lowest mean gap, and the sentence about it, as markdown; a paragraph for each task.

    A group with a collapse is named only if every group has one, and the sentence says so.
    """
    tasks = list(by_task(rows).values())
    if len(tasks) < 2:
        return _best_of_task(rows)
    return "\n\n".join(f"With {as_markdown(own[0].task_label)}: {_best_of_task(own)}" for own in tasks)


def _best_of_task(rows: Sequence[Row]) -> str:
    ranked = ranking(rows)
    if not ranked and rows and all(row.is_baseline for row in rows):
        return "There are BF16 runs only: a gap needs a run of another format or recipe with the same seed."
    if not ranked and rows and not any(row.is_baseline or row.baseline for row in rows):
        said = "There is no BF16 run of these seeds, so there is no gap to it."
        if len(by_group(rows)) < 2:
            return said
        return (
            f"{said} Any two groups can be compared: `altgrad compare` with `--groups`, or the dashboard's page "
            "Compare, part Two groups."
        )
    if not ranked:
        yet = " yet" if any(row.status == "running" for row in rows) else ""
        return (
            f"No gap can be computed{yet}: it needs a BF16 run and another run with the same seed, both alive and with "
            "a validation loss of the same step."
        )
    members, gap = ranked[0]
    said = f"**{as_markdown(members[0].group_label)}**: {as_markdown(gap.sentence)}"
    return said if gap.is_whole else f"No group is without a collapse or NaN. Of those with survivors, {said}"


def newest_events(runs: Iterable[Run], n: int) -> list[dict[str, Any]]:
    """The `n` newest events, newest first: one row per run and kind of event, with the last of these events.

    A run that clips at every step has one row, because it would otherwise fill the table.
    """
    found: list[tuple[float, str, int, str, str, int]] = []
    for run in runs:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row in event_rows(run):
            kinds.setdefault(row["kind"], []).append(row)
        for kind, rows in kinds.items():
            last = rows[-1]
            found.append((last["time"] or 0.0, run.name, last["step"], kind, last["detail"] or "{}", len(rows)))
    return [
        {
            "Run": name,
            "Event": kind_of(kind).label,
            "Times": times,
            "Last step": step,
            "Particulars": particulars(particulars_of(kind, detail)),
        }
        for _, name, step, kind, detail, times in heapq.nlargest(n, found)
    ]


def particulars(detail: Mapping[str, Any]) -> str:
    """An event's detail in words: `gradient norm 2.5, limit 1`; for a verdict its sentence."""
    if "sentence" in detail:
        return str(detail["sentence"])
    return ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in detail.items())


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def event_row(event: Event) -> dict[str, Any]:
    """An event as a row of a table."""
    return {"Step": event.step, "Event": kind_of(event.kind).label, "Particulars": particulars(event.detail)}
