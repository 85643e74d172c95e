"""The events of a run, without those of steps that were trained again.

A run that is restored from step 100 trains steps 101, 102, ... again and writes their events again.  As for steps, the
later attempt counts; otherwise the counts of interventions would contain each of these events twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from altgrad.events import Event, kind_of
from altgrad.results.reading.run import Run

_SHOWN = 40  # characters that are shown of a detail that is not JSON


def read_events(run: Run, steps: pa.Table | None = None) -> list[Event]:
    """A run's events in order of step, without those of attempts whose steps a later attempt repeated.

    `steps`: the run's steps table (any columns), if the caller has read it already.
    """
    return [
        Event(row["step"], row["kind"], particulars_of(row["kind"], row["detail"])) for row in event_rows(run, steps)
    ]


def event_rows(run: Run, steps: pa.Table | None = None) -> list[dict[str, Any]]:
    """The rows of the events that `read_events` returns, with `time`; `detail` is JSON."""
    table = run.table("events", ["time", "kind", "detail"])
    if not table.num_rows:
        return []
    superseded = _superseded(run.table("steps", []) if steps is None else steps) if run.info.get("attempt") else {}
    return [
        row
        for row in table.to_pylist()
        if all(row["attempt"] >= attempt or row["step"] < first for attempt, first in superseded.items())
    ]


def particulars_of(kind: str, detail: str | None) -> dict[str, Any]:
    """The detail of an event, from its JSON; `{"unreadable": why}` if that is malformed: the event is still counted.

    A format shift without the names of its two formats has "?" for them.
    """
    found: Mapping[str, Any]
    try:
        found = json.loads(detail or "{}", parse_constant=str)
    except (ValueError, RecursionError) as error:
        found = {"unreadable": f"{type(error).__name__} in {(detail or '')[:_SHOWN]}"}
    if not isinstance(found, dict):
        found = {"unreadable": f"expected a JSON object, found {type(found).__name__}"}
    if kind == "format_shift":
        formats = {end: found.get(end) for end in ("from", "to")}
        found = {**found, **{end: name if isinstance(name, str) else "?" for end, name in formats.items()}}
    return dict(found)


def acts(events: Iterable[Event]) -> dict[str, int]:
    """Kind of intervention -> the number of times that it acted."""
    return dict(Counter(event.kind for event in events if kind_of(event.kind).is_act))


def format_shifts(events: Iterable[Event]) -> list[Event]:
    """The events in which a format was replaced; `detail` has `from`, `to` and `trigger`."""
    return [event for event in events if event.kind == "format_shift"]


def _superseded(steps: pa.Table) -> dict[int, int]:
    """Attempt -> its first step, for every attempt but the first: from that step on, earlier attempts do not count."""
    first = steps.group_by("attempt").aggregate([("step", "min")])
    starts = dict(zip(first["attempt"].to_pylist(), first["step_min"].to_pylist(), strict=True))
    return {attempt: step for attempt, step in starts.items() if attempt != min(starts)}
