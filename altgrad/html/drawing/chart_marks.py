"""Marks on and around a line: non-finite spans, values outside the scale, verdicts and events.

Every mark has a tooltip that explains it in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from altgrad.events import Event, EventKind, Symbol, kind_of
from altgrad.html.drawing.chart_area import Frame
from altgrad.html.markup import Html, element, join
from altgrad.show.drawn_curves import Line, off_scale
from altgrad.show.palette import ALARM, Marker, event_colour, format_colour
from altgrad.text.number_text import number

# Paths around the origin.
GLYPHS: Mapping[Marker, str] = {
    "circle": "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "square": "m-3-3h6v6h-6z",
    "diamond": "m0-4.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "triangle-up": "m0-4l4 7h-8z",
    "x-thin": "m-3.5-3.5l7 7m0-7l-7 7",
    "star": "m0-4.5v9m-4-6.8l8 4.6m0-4.6l-8 4.6",
}
_UP, _DOWN = "m0-5l5 8h-10z", "m0 5l5-8h-10z"
_CROSS = "m-5-5l10 10m0-10l-10 10"
EVENT_GLYPHS: Mapping[Symbol, str] = {
    "triangle-down": "m0 4l3.5-6h-7z",
    "triangle-left": "m-4 0l6-4v8z",
    "x": "m-3-3l6 6m0-6l-6 6",
    "star": "m0-6l1.8 4.2h4.2l-3.4 2.8l1.4 4.5l-4-2.8l-4 2.8l1.4-4.5l-3.4-2.8h4.2z",
    "circle": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
    "diamond": "m0-4l4 4l-4 4l-4-4z",
    "square": "m-3-3h6v6h-6z",
}
_APART = 22.0  # events of one kind that are closer than this share a mark


def non_finite(one: Line, frame: Frame) -> tuple[Html, Html]:
    """(shaded stretches, crosses): one stretch per span of NaN or inf, one cross at the last finite value before it."""
    stretches, crosses = [], []
    for span in one.spans:
        x, end = frame.x(span.first - 0.5), frame.x(span.last + 0.5)
        said = f"{one.row.run}: {span.count} non-finite, step {span.first}" + (
            f" to {span.last}" if span.last > span.first else ""
        )
        if span.finite_step is not None and span.finite_value is not None:
            said += f"; last finite value {number(span.finite_value)} at step {span.finite_step}"
            at = f"M{frame.x(span.finite_step):.1f} {frame.y(span.finite_value):.1f}"
            crosses.append(element("path", element("title", said), d=at + _CROSS, class_="last-finite"))
        stretches.append(
            element(
                "rect",
                element("title", said),
                x=round(x, 1),
                y=frame.top,
                width=round(max(end - x, 1.0), 1),
                height=frame.height,
                class_="non-finite",
                data_count=span.count,
            )
        )
    return join(stretches), join(crosses)


def beyond(one: Line, frame: Frame) -> Html:
    """Triangles at the edge of the plotting area at each place where the line leaves the scale."""
    parts = []
    for steps, y, glyph, side in zip(
        off_scale(one, frame.values), (frame.top, frame.bottom), (_UP, _DOWN), ("above", "below"), strict=True
    ):
        for step in _spread(steps, frame, 8.0):
            said = element("title", f"{one.row.run} leaves the scale {side} from step {step[0]} on")
            at = f"M{frame.x(step[0]):.1f} {y:.1f}"
            parts.append(element("path", said, d=at + glyph, fill=format_colour(one.row.format), class_="off-scale"))
    return join(parts)


def verdict(one: Line, frame: Frame) -> Html:
    """A diamond at the step of the run's collapse verdict; nothing for a run without one."""
    row = one.row
    if row.collapse_step is None:
        return Html()
    at = _place(one, row.collapse_step, frame)
    said = element("title", f"{row.run} collapsed: {row.reason}{_unmeasured(one, row.collapse_step)}")
    return element("path", said, d=at + "m0-6l6 6l-6 6l-6-6z", class_="verdict", fill=ALARM)


def verdict_lines(lines: Iterable[Line], frame: Frame) -> Html:
    """A dashed line through the whole height at each step with a verdict."""
    parts = []
    for step, rules in sorted(_verdicts(lines).items()):
        said = element("title", f"collapsed at step {step}: {', '.join(sorted(rules))}")
        d = f"M{frame.x(step):.1f} {frame.top:.6g}V{frame.bottom:.6g}"
        parts.append(element("path", said, d=d, stroke=ALARM, class_="verdict-line"))
    return join(parts)


def events(one: Line, happened: Iterable[Event], frame: Frame) -> Html:
    """A run's events on its line; events of one kind that are too close to distinguish share one mark."""
    kinds: dict[str, list[int]] = {}
    for event in happened:
        if kind_of(event.kind).on_curve:
            kinds.setdefault(event.kind, []).append(event.step)
    parts = []
    for kind, steps in ((kind_of(name), steps) for name, steps in kinds.items()):
        for near in _spread(steps, frame, _APART):
            where = f"step {near[0]}" if len(near) == 1 else f"{len(near)} times, steps {near[0]} to {near[-1]}"
            said = element("title", f"{one.row.run}: {kind.label} at {where}{_unmeasured(one, near[0])}")
            at = _place(one, near[0], frame)
            colour = event_colour(kind, one.row.format)
            parts.append(
                element("path", said, d=at + EVENT_GLYPHS[kind.symbol], stroke=colour, fill=colour, class_="event")
            )
    return join(parts)


def event_key(kinds: Iterable[EventKind]) -> Html:
    """Legend items with the mark and the label of each kind of event."""
    return join(
        element("li", element("svg", element("path", d="M8 8" + EVENT_GLYPHS[kind.symbol], class_="event key"),
                              viewBox="0 0 16 16", width=16, height=16, aria_hidden="true"), kind.label)
        for kind in kinds
    )  # fmt: skip


def _verdicts(lines: Iterable[Line]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for one in lines:
        if one.row.collapse_step is not None:
            found.setdefault(one.row.collapse_step, set()).add((one.row.collapse_rule or "").replace("_", " "))
    return found


def _place(one: Line, step: int, frame: Frame) -> str:
    """The start of a mark's path: on the line at that step, or on the step axis if no line is drawn there."""
    height = one.height(step)
    return f"M{frame.x(step):.1f} {frame.bottom if height is None else frame.y(height):.1f}"


def _unmeasured(one: Line, step: int) -> str:
    return "; nothing finite was measured there" if one.height(step) is None else ""


def _spread(steps: Sequence[int], frame: Frame, apart: float) -> list[list[int]]:
    """Steps in groups that begin at least `apart` from each other."""
    groups: list[list[int]] = []
    for step in steps:
        if groups and frame.x(step) - frame.x(groups[-1][0]) < apart:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups
