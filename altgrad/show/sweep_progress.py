"""How a sweep stands: how far it is, what it has cost, who is best, what happened last."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altgrad.compare import Row, ranking
from altgrad.events import Event, kind_of
from altgrad.results import RecordError, Run, read_plan
from altgrad.storage.folder import Folder
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import number

_BETWEEN_TRIALS = 600.0  # seconds in which a sweep that goes on starts its next trial, a first compile included


@dataclass(frozen=True)
class Progress:
    """Steps trained and planned, seconds of training spent and saved, seconds left (None = cannot be told)."""

    steps: int
    planned_steps: int
    spent: float
    saved: float
    seconds_left: float | None
    is_over: bool


def progress(rows: Sequence[Row], runs: Sequence[Run], planned_runs: int | None, now: float) -> Progress:
    """Progress at time `now` (seconds since 1970).

    Runs that have ended count with the steps they trained.  Runs planned but not begun count with the mean
    length of those begun.  The pace is that of all runs together since the first one began.  Between two trials, when
    one has ended and the next has not begun to write, the pace still holds; where nothing has begun or ended for ten
    minutes, the sweep was stopped and no time can be told.
    """
    steps = sum(row.step for row in rows)
    to_come = sum(row.max_steps - row.step for row in rows if row.status == "running")
    not_begun = max((planned_runs or 0) - len(rows), 0)
    if rows:
        to_come += round(not_begun * sum(row.max_steps for row in rows) / len(rows))
    is_over = to_come == 0 and not any(row.status == "running" for row in rows)
    began = min((float(run.info["started"]) for run in runs), default=now)
    pace = steps / (now - began) if now > began else 0.0
    goes_on = any(row.status == "running" for row in rows) or now - _last_change(runs) < _BETWEEN_TRIALS
    return Progress(
        steps=steps,
        planned_steps=steps + to_come,
        spent=sum(row.seconds or 0.0 for row in rows),
        saved=sum(row.seconds_saved or 0.0 for row in rows),
        seconds_left=to_come / pace if pace > 0 and goes_on else None,
        is_over=is_over,
    )


def _last_change(runs: Iterable[Run]) -> float:
    """When a run last began or ended."""
    times = [float((run.end or {}).get("ended") or run.info["started"]) for run in runs]
    return max(times, default=float("-inf"))


def compute_sentence(rows: Sequence[Row]) -> str | None:
    """Device-hours of training spent and saved by early stopping, by kind of device; None where no run says."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row.device is not None:
            kinds.setdefault(row.device, []).append(row)
    parts = []
    for device, members in sorted(kinds.items()):
        spent = sum(row.device_hours or 0.0 for row in members)
        saved = sum(row.device_hours_saved or 0.0 for row in members)
        parts.append(f"{number(spent, 3)} {device}-hours spent, {number(saved, 3)} saved by early stopping")
    if not parts:
        return None
    silent = len(rows) - sum(map(len, kinds.values()))
    return "Compute: " + "; ".join(parts) + (f"; runs that do not say what they held: {silent}" if silent else "")


def planned_runs(sweep: Folder) -> int | None:
    """How many runs the sweep was started with, where its `sweep.json` says so."""
    try:
        return len(read_plan(sweep)["runs"])
    except (RecordError, OSError):
        return None


def best_sentence(rows: Sequence[Row]) -> str:
    """The group nearest to the baseline, or furthest ahead, and what may be said of it, as markdown.

    A group with a collapse is named only where there is none without, and then as such.
    """
    ranked = ranking(rows)
    if not ranked:
        return (
            "No gap can be computed yet: it needs a BF16 run and another run with the same seed, both alive and with a "
            "validation loss of the same step."
        )
    members, gap = ranked[0]
    said = f"**{as_markdown(members[0].group_label)}**: {as_markdown(gap.sentence)}"
    return said if gap.is_whole else f"No group is without a collapse or NaN. Of those with survivors, {said}"


def newest_events(runs: Iterable[Run], n: int) -> list[dict[str, Any]]:
    """The `n` kinds of event that happened last, newest first: one row per run and kind with its last occurrence.

    A run that clips at every step has one row, or nothing else would be seen.
    """
    found: list[tuple[float, str, int, str, str, int]] = []
    for run in runs:
        table = run.table("events", ["time", "kind", "detail"])
        if not table.num_rows:
            continue
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
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
            "Then": particulars(json.loads(detail)),
        }
        for _, name, step, kind, detail, times in heapq.nlargest(n, found)
    ]


def particulars(detail: Mapping[str, Any]) -> str:
    """An event's detail in words: `gradient norm 2.5, limit 1`; a verdict has its sentence."""
    if "sentence" in detail:
        return str(detail["sentence"])
    return ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in detail.items())


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def event_row(event: Event) -> dict[str, Any]:
    """An event as a row of a table."""
    return {"Step": event.step, "Event": kind_of(event.kind).label, "Particulars": particulars(event.detail)}
