"""The small drawings of a board: gaps as bars on a common scale, and loss curves on a common scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from altgrad.compare import PairedGap, Row, by_task, loss_unit
from altgrad.compare.parity.verdict import ENOUGH_SEEDS
from altgrad.html.drawing.chart_area import Frame
from altgrad.html.drawing.charts import path_data
from altgrad.html.markup import Html, element
from altgrad.show.drawn_curves import Line, death, scale
from altgrad.show.palette import ALARM, NEUTRAL, curve_dash, format_colour
from altgrad.text.number_text import number

_BAR, _SPARK = (150, 20), (110, 30)  # pixels: width and height of a gap's bar, and of the loss curves


@dataclass(frozen=True)
class Picture:
    """A small drawing: SVG elements, width and height, and its content in words."""

    parts: Sequence[Html]
    size: tuple[int, int]
    alt: str


@dataclass(frozen=True)
class Bars:
    """The common scale of the gaps, from `low` to `high`; `margin`: half the width of the shaded band, if it is one.

    `is_used`: whether any bar is drawn.
    """

    low: float
    high: float
    margin: float | None
    is_used: bool

    @classmethod
    def of(cls, groups: Sequence[Sequence[Row]], gaps: Sequence[PairedGap]) -> Bars:
        """A scale for the groups whose runs are all well; bars of the others may leave it."""
        margins = {
            gap.parity.margin
            for members, gap in zip(groups, gaps, strict=True)
            if gap.parity is not None and gap.parity.margin is not None and not members[0].is_baseline
        }
        margin = margins.pop() if len(margins) == 1 else None
        ends = [0.0, *((-1.5 * margin, 1.5 * margin) if margin is not None else ())]
        for gap in gaps:
            if gap.mean is not None and gap.is_whole:
                ends += [gap.mean]
                ends += (
                    [gap.low, gap.high]
                    if gap.n >= ENOUGH_SEEDS and gap.low is not None and gap.high is not None
                    else []
                )
        reach = (max(ends) - min(ends)) or 1.0
        is_used = any(
            gap.mean is not None and not members[0].is_baseline for members, gap in zip(groups, gaps, strict=True)
        )
        return cls(min(ends) - 0.04 * reach, max(ends) + 0.04 * reach, margin, is_used)

    @classmethod
    def by_task(cls, groups: Sequence[Sequence[Row]], gaps: Sequence[PairedGap]) -> dict[str, Bars]:
        """A scale for each task: gaps of two tasks are no common length."""
        found: dict[str, tuple[list[Sequence[Row]], list[PairedGap]]] = {}
        for members, gap in zip(groups, gaps, strict=True):
            own = found.setdefault(members[0].task, ([], []))
            own[0].append(members)
            own[1].append(gap)
        return {task: cls.of(*own) for task, own in found.items()}

    @property
    def span(self) -> str:
        """The ends of the scale: `-0.02 to 0.3`."""
        return f"{number(self.low, 2)} to {number(self.high, 2)}"

    def x(self, value: float) -> float:
        """The place of a value on the bar, in its units; one beyond the scale stands at its end."""
        return _BAR[0] * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def drawn(self, row: Row, gap: PairedGap) -> Picture | None:
        """The interval of a gap with its mean; an arrow where it leaves the scale; None without a mean."""
        if gap.mean is None or row.is_baseline:
            return None
        width, height = _BAR
        middle, colour = height / 2, format_colour(row.format)
        parts = []
        if self.margin is not None:
            left, right = self.x(-self.margin), self.x(self.margin)
            parts.append(
                element("rect", x=left, y=0, width=right - left, height=height, fill=NEUTRAL, fill_opacity=0.3)
            )
        parts.append(element("path", d=f"M{self.x(0):.1f} 0v{height}", stroke=NEUTRAL, stroke_width=1))
        if gap.low is not None and gap.high is not None:
            low, high = self.x(gap.low), self.x(gap.high)
            parts.append(element("path", d=f"M{low:.1f} {middle}H{high:.1f}", stroke=colour, stroke_width=3))
            arrows = [f"M5 {middle - 4}l-5 4l5 4"] if gap.low < self.low else []
            arrows += [f"M{width - 5} {middle - 4}l5 4l-5 4"] if gap.high > self.high else []
            parts += [element("path", d=d, stroke=colour, stroke_width=2, fill="none") for d in arrows]
        if gap.mean > self.high:
            parts.append(element("path", d=f"M{width - 8} {middle - 5}l8 5l-8 5z", fill=colour))
        elif gap.mean < self.low:
            parts.append(element("path", d=f"M8 {middle - 5}l-8 5l8 5z", fill=colour))
        else:
            parts.append(element("circle", cx=self.x(gap.mean), cy=middle, r=4, fill=colour))
        return Picture(parts, _BAR, f"gap {gap.figure} on the common scale")


def one_scale(used: Sequence[Bars], rows: Sequence[Row]) -> str:
    """`one scale, from 0 to 0.3 nats`; of several tasks that each has its own."""
    if len(used) > 1:
        return "a scale for each task"
    return f"one scale, from {used[0].span} {loss_unit(rows)}".strip()


@dataclass(frozen=True)
class Sparks:
    """The common scale of the loss curves."""

    frame: Frame

    @classmethod
    def of(cls, lines: Mapping[str, Line], steps: Iterable[int] = ()) -> Sparks | None:
        """A scale that the healthy runs fill, up to the last of their steps or of `steps`; None without a curve."""
        limits = scale(list(lines.values()))
        if limits is None:
            return None
        last = max([*steps, *(int(one.raw.steps[-1]) for one in lines.values())])
        left, top, width, height = 2, 5, _SPARK[0] - 8, _SPARK[1] - 10  # room for a cross at the edge
        return cls(Frame(left, top, width, height, (0.0, float(max(last, 1))), limits))

    @classmethod
    def by_task(cls, rows: Iterable[Row], lines: Mapping[str, Line], to_end: bool = False) -> dict[str, Sparks]:
        """A scale for each task of which there is a curve; `to_end`: up to the last planned step of its rows."""
        found = {}
        for task, own in by_task(rows).items():
            names = {name for row in own for name in (row.run, row.baseline) if name is not None}
            scale = cls.of(
                {name: line for name, line in lines.items() if name in names},
                (row.max_steps for row in own) if to_end else (),
            )
            if scale is not None:
                found[task] = scale
        return found

    def drawn(self, members: Sequence[Row], lines: Mapping[str, Line], behind: Iterable[str] = ()) -> Picture | None:
        """The curves of some runs, with those of the runs `behind` in grey; None if none of them has one."""
        own = [lines[row.run] for row in members if row.run in lines]
        if not own:
            return None
        parts = [
            self._path(lines[name], stroke=NEUTRAL, stroke_opacity=0.6)
            for name in dict.fromkeys(behind)
            if name in lines and all(row.run != name for row in members)
        ]
        dash = curve_dash(members[0].format, members[0].intervention)
        stroke = {"stroke": format_colour(members[0].format), "stroke_dasharray": None if dash == "solid" else dash}
        parts += [self._path(one, **stroke) for one in own]
        for one in own:
            died = death(one)
            if died is not None:
                parts.append(self._cross(died.step, died.value))
            elif one.row.non_finite:
                finite = one.raw.finite()
                parts += [self._cross(finite.steps[-1], finite.values[-1])] if len(finite.steps) else []
        ends = ", ".join(f"{one.row.run} {one.row.status}" for one in own)
        return Picture(parts, _SPARK, f"training loss on the common scale: {ends}")

    def _path(self, one: Line, **stroke: str | float | None) -> Html:
        return element("path", d=path_data(one.raw, self.frame), fill="none", stroke_width=1.3, **stroke)

    def _cross(self, step: float, value: float) -> Html:
        x, y = self.frame.x(float(step)), self.frame.y(float(value))
        return element("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", stroke=ALARM, stroke_width=2)


def in_page(picture: Picture | None) -> Html:
    """The drawing as an SVG element."""
    if picture is None:
        return Html()
    width, height = picture.size
    return element("svg", element("title", picture.alt), *picture.parts, viewBox=f"0 0 {width} {height}", width=width,
                   height=height, role="img", class_="spark")  # fmt: skip


def as_image(picture: Picture | None) -> Html:
    """The drawing as an image with its data in it: Streamlit removes SVG elements from a page, but not images."""
    if picture is None:
        return Html()
    width, height = picture.size
    drawn = element("svg", *picture.parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}")
    return element("img", src=f"data:image/svg+xml,{quote(drawn)}", width=width, height=height, alt=picture.alt)
