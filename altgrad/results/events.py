"""What happened in a run: its events, without those that a restored run has undone.

A run restored from step 100 trains steps 101... again, and their events are written again.  As with steps, the
later attempt counts; an interventions count that ignores this reports rescues that never happened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from altgrad.events import Event, kind_of
from altgrad.results.run import Run


def read_events(run: Run, steps: pa.Table | None = None) -> list[Event]:
    """A run's events in order of step, those of later-repeated steps left out.

    `steps`: the run's steps table (any columns), where the caller has it already.
    """
    table = run.table("events", ["kind", "detail"])
    if not table.num_rows:
        return []
    superseded = _superseded(run.table("steps", []) if steps is None else steps) if run.info.get("attempt") else {}
    return [
        Event(row["step"], row["kind"], json.loads(row["detail"] or "{}"))
        for row in table.to_pylist()
        if all(row["attempt"] >= attempt or row["step"] < first for attempt, first in superseded.items())
    ]


def acts(events: Iterable[Event]) -> dict[str, int]:
    """How often each kind of intervention acted."""
    return dict(Counter(event.kind for event in events if kind_of(event.kind).is_act))


def format_shifts(events: Iterable[Event]) -> list[Event]:
    """The events in which a format was replaced; `detail` has `from`, `to` and `trigger`."""
    return [event for event in events if event.kind == "format_shift"]


def _superseded(steps: pa.Table) -> dict[int, int]:
    """Attempt -> its first step, for every attempt but the first: from there on earlier attempts do not count."""
    first = steps.group_by("attempt").aggregate([("step", "min")])
    starts = dict(zip(first["attempt"].to_pylist(), first["step_min"].to_pylist(), strict=True))
    return {attempt: step for attempt, step in starts.items() if attempt != min(starts)}
