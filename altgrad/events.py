"""Name, label, meaning and symbol of every kind of event, and whether an intervention caused it.

An event records that something happened to a run at a step.  Code that writes an event must find its kind in this
table, and code that shows or counts events reads the table, so that a new kind needs one new row here and nothing else.
A kind that this table lacks, from an older or newer version, stays readable: see `kind_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Plotly's names; `drawing.chart_marks` has a path for each.
Symbol = Literal["triangle-down", "triangle-left", "x", "star", "circle", "diamond", "square"]
# `run`: the colour of the run's format, for events that changed its training; `neutral`: grey, for all others.
Colour = Literal["run", "neutral"]


@dataclass(frozen=True)
class EventKind:
    """One kind of event.

    `is_act`: an intervention did something to save the run; acts are what rescue tables and comparisons count.
    `on_curve`: the event is marked on the run's curves.
    """

    name: str
    label: str
    meaning: str
    is_act: bool
    symbol: Symbol
    colour: Colour
    on_curve: bool = True


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: the step, the kind (a name in `EVENTS`), and details by name."""

    step: int
    kind: str
    detail: Mapping[str, Any]


# fmt: off
_TABLE = (
    # acts of an intervention
    EventKind("clip", "clip", "the clipper reduced the gradient norm to the limit of the format, because gradients overflowed", True, "triangle-down", "run"),
    EventKind("skip", "skip", "the optimizer step was skipped, because the loss or a gradient was NaN or inf, or by the rescue ladder, because the loss was far above its best", True, "x", "run"),
    EventKind("rollback", "rollback", "weights and optimizer state were restored from the last finite snapshot, because they held NaN or inf, or by the rescue ladder from the last healthy one, in memory or in a checkpoint", True, "triangle-left", "run"),
    EventKind("format_shift", "format shift", "a failing format was replaced by a safer one during the run, at all operands or at chosen ones", True, "star", "run"),
    EventKind("rate_cut", "rate cut", "the rescue ladder cut the learning rate to a tenth, from where it warms up again", True, "triangle-down", "run"),
    # other events
    EventKind("collapse_warning", "warning", "a diagnostic left the range that it has in healthy runs; no verdict, and nothing is changed by it", False, "diamond", "neutral"),
    EventKind("phase", "phase of the recipe", "the schedule of the recipe changed the casts of the GEMMs, as configured", False, "diamond", "run"),
    EventKind("shift_unavailable", "shift unavailable", "a format shift was due, but no tensor of the model has a safer format left", False, "diamond", "run"),
    EventKind("restore", "restore", "the run was interrupted, and a further attempt continued from a checkpoint or from step 0", False, "circle", "neutral"),
    EventKind("checkpoint_fallback", "checkpoint fallback", "a checkpoint was damaged, and the run was restored from an older one", False, "square", "neutral"),
    EventKind("checkpoint_skipped", "checkpoint skipped", "storage refused to write a checkpoint, and training went on without it", False, "square", "neutral", on_curve=False),
    EventKind("storage_outage", "storage outage", "storage refused to write rows for a while; they were kept in memory and written afterwards", False, "square", "neutral", on_curve=False),
    # drawn from the run's end record, as a line through the whole chart
    EventKind("verdict", "verdict", "a collapse rule judged that the run has collapsed", False, "diamond", "neutral", on_curve=False),
)
# fmt: on
EVENTS: Mapping[str, EventKind] = {kind.name: kind for kind in _TABLE}


def check_kind(name: str) -> None:
    """Raise ValueError for a kind that is not in `EVENTS`."""
    if name not in EVENTS:
        raise ValueError(f"event kind {name!r}; known: {', '.join(EVENTS)} (declared in altgrad/events.py)")


def kind_of(name: str) -> EventKind:
    """The kind of that name; a name that `EVENTS` lacks gives a kind labelled with the raw name, which is not an act."""
    return EVENTS.get(name) or EventKind(name, name, "a kind that this version does not know", False, "diamond", "run")
