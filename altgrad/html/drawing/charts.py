"""Curves as SVG: all runs on one scale, a panel per format, and each collapsed run by itself.

The path of each line is written once, in the units of `_SPACE`, and referenced (`<use>`) by every chart that shows it,
so that a page with hundreds of runs stays small.  The scale fits the healthy runs; lines that leave it are marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from altgrad.compare import Row, loss_unit
from altgrad.events import Event, EventKind, kind_of
from altgrad.html.drawing import chart_marks as marks
from altgrad.html.drawing.chart_area import Frame, axes, margin, most_values, ticks
from altgrad.html.markup import Html, element, join
from altgrad.metrics import described
from altgrad.results.reading.curves import Curve
from altgrad.show.drawn_curves import Line, describe, scale
from altgrad.show.palette import curve_dash, curve_marker, format_colour

_SPACE = (4000, 2000)  # width and height of the path's coordinates: finer than the pixels of a screen
_VIEW_BOX = "0 0 4000 2000"
_MOST_VERDICT_LINES = 6
_MOST_WITH_EVENTS = 4
_FAR = 4.0
Events = Mapping[str, Sequence[Event]]


@dataclass(frozen=True)
class Curves:
    """Lines of one metric on one scale: `limits`, or by default that of the healthy runs.

    `events`: run name -> its events.  `number_of`: run name -> the number in the id of its shared path, after `prefix`.
    """

    lines: Sequence[Line]
    events: Events
    metric: str
    limits: tuple[float, float] | None = None
    prefix: str = "curve"

    @cached_property
    def values(self) -> tuple[float, float]:
        """Lowest and highest value of the y-axis; an arbitrary interval if no value is finite."""
        return self.limits or scale(self.lines) or (0.0, 1.0)

    @cached_property
    def steps(self) -> tuple[float, float]:
        """First and last step of the x-axis: that of all lines, collapses and, where they are drawn, events."""
        first = min(int(one.raw.steps[0]) for one in self.lines)
        last = max(max(int(one.raw.steps[-1]), one.row.collapse_step or 0) for one in self.lines)
        if len(self.lines) <= _MOST_WITH_EVENTS:  # an event may be later than the last measurement
            happened = [event for one in self.lines for event in self.events.get(one.row.run, ())]
            last = max([last, *(event.step for event in happened if kind_of(event.kind).on_curve)])
        return float(first), float(max(last, first + 1))

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Run name -> place of its line."""
        return {one.row.run: place for place, one in enumerate(self.lines)}

    def place(self, run: str) -> str:
        """The id of a run's shared path."""
        return f"{self.prefix}-{self.number_of[run]}"

    @cached_property
    def variants(self) -> list[str]:
        """The treatments of the runs, each once, in order of the lines."""
        return list(dict.fromkeys(one.row.treatment for one in self.lines))

    def shared(self) -> Html:
        """The paths of all lines; the page must contain them once."""
        frame = Frame(0, 0, *_SPACE, self.steps, self.values)
        paths = (
            element("path", id=self.place(one.row.run), d=path_data(one.raw, frame), class_="curve")
            for one in self.lines
        )
        return element("svg", element("defs", join(paths)), width=0, height=0, aria_hidden="true", class_="shared")

    def spark(self, row: Row) -> Html:
        """The line of a row as a small chart for a table cell, on the common scale; a dash if it has no line."""
        if row.run not in self.number_of:
            return Html("–")
        said = element("title", f"{described(self.metric).label} of {row.run}")
        line = _use(self.place(row.run), row, width=1.2)
        return element("svg", said, line, viewBox=_VIEW_BOX, preserveAspectRatio="none", width=96, height=26,
                       role="img", class_="spark")  # fmt: skip


def overlay(curves: Curves) -> Html:
    """A chart with all lines."""
    return _chart(curves, curves.lines, 1200, 450, label=f"{described(curves.metric).label} of all runs")


def panel(curves: Curves, name: str) -> Html:
    """A chart with the lines of one format, and all others faint behind them, on the scale of all lines."""
    own = [one for one in curves.lines if one.row.format == name]
    others = join(
        element("use", href=f"#{curves.place(one.row.run)}", class_="other")
        for one in curves.lines
        if one.row.format != name
    )
    return _chart(curves, own, 590, 250, label=f"{described(curves.metric).label}, {name}", behind=others)


def alone(curves: Curves, one: Line) -> Html:
    """A chart of one run with its events and verdict, on its own scale, or on that of all if it went far beyond."""
    single = replace(curves, lines=[one])
    (low, high), (lowest, highest) = single.values, curves.values
    if high - low > _FAR * (highest - lowest):
        single = replace(single, limits=curves.values)
    space = Frame(0, 0, *_SPACE, single.steps, single.values)
    line = element("path", d=path_data(one.raw, space), class_="curve", **_stroke(one.row, 1.6))
    return _drawn(single, [one], line, 860, 230, f"{described(curves.metric).label} of {one.row.run}")


def legend(curves: Curves, kinds: Iterable[EventKind] = ()) -> Html:
    """A list of the groups with their line styles, and of the kinds of events with their marks."""
    groups: dict[str, Row] = {}
    for one in curves.lines:
        groups.setdefault(one.row.group, one.row)
    items = [element("li", _sample(row, curves.variants), row.group_label) for row in groups.values()]
    return element("ul", join(items), marks.event_key(kinds), class_="legend")


def _chart(curves: Curves, lines: Sequence[Line], width: int, height: int, *, label: str, behind: str = Html()) -> Html:
    drawn = (
        element("g", element("title", f"{one.row.run}: {one.row.group_label}, {one.row.status}"),
                _use(curves.place(one.row.run), one.row, width=1.6))
        for one in lines
    )  # fmt: skip
    return _drawn(curves, lines, join([behind, *drawn]), width, height, label)


def _drawn(curves: Curves, lines: Sequence[Line], plot: Html, width: int, height: int, label: str) -> Html:
    """A chart: axes, shaded spans, the lines (`plot`, in the units of `_SPACE`), and the marks on top of them."""
    left = margin(ticks(*curves.values, most_values(height)))
    frame = Frame(left, 30, width - left - 14, height - 30, curves.steps, curves.values)
    non_finite = [marks.non_finite(one, frame) for one in lines]
    parts = [
        element("title", label),
        element("desc", describe(lines)),
        axes(frame, described(curves.metric).axis_in(loss_unit(one.row for one in curves.lines))),
        *(stretches for stretches, _ in non_finite),
    ]
    if len({one.row.collapse_step for one in lines} - {None}) <= _MOST_VERDICT_LINES:
        parts.append(marks.verdict_lines(lines, frame))
    box = {"x": frame.left, "y": frame.top, "width": frame.width, "height": frame.height}
    parts.append(element("svg", plot, viewBox=_VIEW_BOX, preserveAspectRatio="none", **box))
    parts += [_markers(one, curves.variants, frame) for one in lines]
    parts += [marks.beyond(one, frame) for one in lines]
    if len(lines) <= _MOST_WITH_EVENTS:
        parts += [marks.events(one, curves.events.get(one.row.run, ()), frame) for one in lines]
    parts += [crosses for _, crosses in non_finite] + [marks.verdict(one, frame) for one in lines]
    return element("svg", *parts, viewBox=f"0 0 {width} {frame.bottom + 40:.6g}", role="img", class_="chart",
                   style=f"max-width:{width}px")  # fmt: skip


def path_data(curve: Curve, frame: Frame) -> str:
    """The curve as SVG path data with a gap at non-finite values; values outside the scale are drawn outside."""
    (first, last), (low, high) = frame.steps, frame.values
    x = np.rint(frame.left + frame.width * (curve.steps - first) / (last - first)).astype(int).tolist()
    with np.errstate(invalid="ignore"):
        heights = frame.bottom - frame.height * (curve.values - low) / (high - low)
    limit = 10 * frame.height  # SVG clips the line; the exact place outside does not matter
    y = np.rint(np.clip(np.nan_to_num(heights, posinf=limit, neginf=-limit), -limit, limit)).astype(int).tolist()
    finite = np.isfinite(curve.values).tolist()
    parts: list[str] = []
    for place, here in enumerate(finite):
        if not here:
            continue
        if place == 0 or not finite[place - 1]:
            alone = place + 1 == len(finite) or not finite[place + 1]
            parts.append(f"M{x[place]} {y[place]}" + ("h0" if alone else ""))  # a round cap makes it a dot
        else:
            parts.append(f"l{x[place] - x[place - 1]} {y[place] - y[place - 1]}")
    return "".join(parts)


def _stroke(row: Row, width: float) -> dict[str, str | float | None]:
    dash = curve_dash(row.format, row.intervention)
    return {
        "stroke": format_colour(row.format),
        "stroke_width": width,
        "stroke_dasharray": None if dash == "solid" else dash,
    }


def _use(place: str, row: Row, width: float) -> Html:
    return element("use", href=f"#{place}", **_stroke(row, width))


def _markers(one: Line, variants: Sequence[str], frame: Frame) -> Html:
    """Up to eight markers along the line that show the run's variant; none for the default variant."""
    marker, finite = curve_marker(one.row.format, one.row.treatment, variants), one.raw.finite()
    if marker is None or not len(finite.steps):
        return Html()
    places = np.linspace(0, len(finite.steps) - 1, 8).astype(int)
    inside = [
        (step, value)
        for step, value in zip(finite.steps[places].tolist(), finite.values[places].tolist(), strict=True)
        if frame.values[0] <= value <= frame.values[1]
    ]
    d = "".join(f"M{frame.x(step):.1f} {frame.y(value):.1f}{marks.GLYPHS[marker]}" for step, value in inside)
    return element("path", d=d, stroke=format_colour(one.row.format), class_="marker")


def _sample(row: Row, variants: Sequence[str]) -> Html:
    marker = curve_marker(row.format, row.treatment, variants)
    line = element("path", d="M1 8h34", class_="curve", **_stroke(row, 2.2))
    glyph = marker and element(
        "path", d="M18 8" + marks.GLYPHS[marker], stroke=format_colour(row.format), class_="marker"
    )
    return element("svg", line, glyph or Html(), viewBox="0 0 36 16", width=36, height=16, aria_hidden="true")
