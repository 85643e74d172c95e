"""Every kind of event: its name, its label, what it means, whether it is an act, and how it is drawn.

An event says that something happened to a run at a step.  Whoever writes one must find its kind in this table; whoever
shows or counts events reads the table, so that a new kind is one new row here and is then counted and drawn right
everywhere.  A kind of an older or newer version that this table lacks stays readable: see `kind_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Plotly's names; `html.marks` has a path for each.
Symbol = Literal["triangle-down", "triangle-left", "x", "star", "circle", "diamond", "square"]
# `run`: in the colour of the run's format, as what was done to its training; `neutral`: grey, as what befell it.
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
    """Something that happened to a run: at which step, of which kind (a name in `EVENTS`), and its particulars."""

    step: int
    kind: str
    detail: Mapping[str, Any]


# fmt: off
_TABLE = (
    # what an intervention did
    EventKind("clip", "clip", "the clipper cut the gradient norm to the limit of an overflowing format", True, "triangle-down", "run"),
    EventKind("skip", "skip", "the optimizer did not move, because the loss or a gradient was NaN or inf", True, "x", "run"),
    EventKind("rollback", "rollback", "weights and optimizer state went back to the last good snapshot, because they held NaN or inf", True, "triangle-left", "run"),
    EventKind("format_shift", "format shift", "a failing format was replaced by a safer one", True, "star", "run"),
    # what befell the run
    EventKind("shift_unavailable", "shift unavailable", "a shift was due, but no site has a safer format left", False, "diamond", "run"),
    EventKind("restore", "restore", "a further attempt went on from a checkpoint, or from the beginning", False, "circle", "neutral"),
    EventKind("checkpoint_fallback", "checkpoint fallback", "a checkpoint was damaged; the one before it was used", False, "square", "neutral"),
    EventKind("checkpoint_skipped", "checkpoint skipped", "storage refused a checkpoint; training went on without it", False, "square", "neutral", on_curve=False),
    EventKind("storage_outage", "storage outage", "storage refused rows for a while; they were kept and written afterwards", False, "square", "neutral", on_curve=False),
    # drawn from the run's end record, as a line through the whole chart
    EventKind("verdict", "verdict", "a collapse rule judged the run", False, "diamond", "neutral", on_curve=False),
)
# fmt: on
EVENTS: Mapping[str, EventKind] = {kind.name: kind for kind in _TABLE}


def check_kind(name: str) -> None:
    """Raises ValueError for a kind that is not in `EVENTS`."""
    if name not in EVENTS:
        raise ValueError(f"event kind {name!r}; known: {', '.join(EVENTS)} (declared in altgrad/events.py)")


def kind_of(name: str) -> EventKind:
    """The kind of that name; for a name that only another version knows one that shows the raw name and is no act."""
    return EVENTS.get(name) or EventKind(name, name, "a kind that this version does not know", False, "diamond", "run")
