"""The board of a sweep: a row per group of seeds that can be read at a glance, in the static report and the dashboard.

Status, format, the gap as an interval on a scale that all rows share, the parity verdict in words, and the loss curves
of its runs on a common scale with a cross where a run died.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from urllib.parse import quote

from altgrad.compare import PairedGap, Row, by_group, loss_unit, paired_gap, parity_lines
from altgrad.compare.parity.verdict import ENOUGH_SEEDS
from altgrad.html.drawing.chart_area import Frame
from altgrad.html.drawing.charts import path_data
from altgrad.html.markup import Html, element, join
from altgrad.metrics import METRICS
from altgrad.show.drawn_curves import Line, scale
from altgrad.show.palette import ALARM, NEUTRAL, curve_dash, format_colour
from altgrad.text.number_text import ABSENT, number

_BAR, _SPARK = (150, 20), (96, 28)  # width, height of a gap's bar and of the loss curves  # pixels
_HEADS = ("Group", "Runs", "Gap to BF16", "Parity", METRICS["loss"].label)
BOARD_STYLE = resources.files("altgrad.html").joinpath("board.css").read_text()


def group_board(
    rows: Sequence[Row], lines: Mapping[str, Line], link: Callable[[Row], str | None], images: bool = False
) -> Html:
    """A row per group, baselines first.

    `lines`: run -> its loss curve.  `link`: where a group's name leads, or None.  `images`: the drawings are images.
    """
    groups = [members for members in by_group(rows).values() if any(row.is_baseline for row in members)]
    groups += [list(line.members) for line in parity_lines(rows)]
    gaps = [paired_gap(members) for members in groups]
    draw = _image if images else _drawing
    bars, sparks = _Bars.of(groups, gaps), _Sparks.of(lines)
    heads = _HEADS if sparks is not None else _HEADS[:-1]
    body = []
    for members, gap in zip(groups, gaps, strict=True):
        cells = [
            _runs(members),
            join([draw(bars.drawn(members[0], gap)), _figure(members, gap)]),
            _parity(members, gap),
        ]
        if sparks is not None:
            cells.append(draw(sparks.drawn(members, lines)) or Html(ABSENT))
        kinds = (None, None, "parity", None)
        own = (element("td", cell, class_=kind) for cell, kind in zip(cells, kinds, strict=False))
        body.append(element("tr", element("th", _name(members[0], link), scope="row"), *own))
    head = element("thead", element("tr", join(element("th", text, scope="col") for text in heads)))
    drawn = element("table", head, element("tbody", join(body, "\n")), class_="board")
    box = element("div", drawn, class_="board-scroll", tabindex=0, role="region", aria_label="Groups of runs")
    return join([box, element("p", bars.note(rows), class_="board-note")])


@dataclass(frozen=True)
class _Picture:
    """A small drawing: SVG elements, width and height, and its content in words."""

    parts: Sequence[Html]
    size: tuple[int, int]
    alt: str


@dataclass(frozen=True)
class _Bars:
    """The common scale of the gaps, from `low` to `high`; `margin`: half the width of the shaded band, if it is one."""

    low: float
    high: float
    margin: float | None

    @classmethod
    def of(cls, groups: Sequence[Sequence[Row]], gaps: Sequence[PairedGap]) -> _Bars:
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
                ends += [gap.low, gap.high] if gap.n >= ENOUGH_SEEDS and gap.low is not None and gap.high else []
        reach = (max(ends) - min(ends)) or 1.0
        return cls(min(ends) - 0.04 * reach, max(ends) + 0.04 * reach, margin)

    def x(self, value: float) -> float:
        return _BAR[0] * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def drawn(self, row: Row, gap: PairedGap) -> _Picture | None:
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
        else:
            parts.append(element("circle", cx=self.x(gap.mean), cy=middle, r=4, fill=colour))
        return _Picture(parts, _BAR, f"gap {gap.figure} on the common scale")

    def note(self, rows: Sequence[Row]) -> str:
        unit = loss_unit(rows)
        band = "" if self.margin is None else " Shaded: the margin within which a group is equivalent."
        span = f"from {number(self.low, 2)} to {number(self.high, 2)} {unit}".strip()
        return (
            f"Bars: 95 % interval of the gap on one scale, {span}; an arrow leaves it.{band} Loss: training loss on "
            "one scale; a cross marks where a run died."
        )


@dataclass(frozen=True)
class _Sparks:
    """The common scale of the loss curves."""

    frame: Frame

    @classmethod
    def of(cls, lines: Mapping[str, Line]) -> _Sparks | None:
        """A scale that the healthy runs fill; None without a curve."""
        limits = scale(list(lines.values()))
        if limits is None:
            return None
        last = max(float(one.raw.steps[-1]) for one in lines.values())
        return cls(Frame(0, 0, *_SPARK, (0.0, max(last, 1.0)), limits))

    def drawn(self, members: Sequence[Row], lines: Mapping[str, Line]) -> _Picture | None:
        """The curves of a group; None if none has one."""
        own = [lines[row.run] for row in members if row.run in lines]
        if not own:
            return None
        dash = curve_dash(members[0].format, members[0].intervention)
        stroke = {"stroke": format_colour(members[0].format), "stroke_dasharray": None if dash == "solid" else dash}
        parts = [
            element("path", d=path_data(one.raw, self.frame), fill="none", stroke_width=1.3, **stroke) for one in own
        ]
        for one in own:
            finite = one.raw.finite()
            if (one.row.collapsed or one.row.non_finite or one.spans) and len(finite.steps):
                x, y = self.frame.x(float(finite.steps[-1])), self.frame.y(float(finite.values[-1]))
                parts.append(element("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", stroke=ALARM, stroke_width=2))
        ends = ", ".join(f"{one.row.run} {one.row.status}" for one in own)
        return _Picture(parts, _SPARK, f"training loss on the common scale: {ends}")


def _name(row: Row, link: Callable[[Row], str | None]) -> Html:
    swatch, where = element("span", class_="swatch", style=f"background:{format_colour(row.format)}"), link(row)
    return join([swatch, row.group_label if where is None else element("a", row.group_label, href=where)])


def _runs(members: Sequence[Row]) -> Html:
    """`●●✕` with a word per status: shape and word say what the colour says."""
    marks = join(
        element("span", "✕" if row.collapsed or row.status in ("failed", "killed") else "○" if row.status == "running"
                else "●", title=f"{row.run}: {row.status}", style=f"color:{ALARM if _is_dead(row) else NEUTRAL}")
        for row in members
    )  # fmt: skip
    counts = Counter("collapsed" if row.collapsed else str(row.status) for row in members)
    said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    return join([marks, " ", element("span", said, class_="small")])


def _is_dead(row: Row) -> bool:
    return row.collapsed or row.status in ("failed", "killed")


def _figure(members: Sequence[Row], gap: PairedGap) -> Html:
    """The gap in figures; NaN as NaN, and for a group of dead runs the gap at which each of them died."""
    if members[0].is_baseline:
        said = "baseline"
    elif gap.non_finite and gap.mean is None:
        said = "NaN"
    elif gap.figure is not None:
        said = gap.figure + (f", {gap.non_finite} at NaN" if gap.non_finite else "")
    else:
        ends = [f"{row.gap:+.3f} at step {row.gap_step}" for row in members if row.gap is not None]
        said = f"{ends[0]}, before it died" if ends else members[0].pairing or ABSENT
    return element("div", said, class_="small")


def _parity(members: Sequence[Row], gap: PairedGap) -> Html:
    if members[0].is_baseline or gap.parity is None:
        return Html("reference")
    sentence = gap.parity.sentence.removeprefix(gap.parity.verdict)
    return join([element("strong", gap.parity.verdict), sentence if sentence[0] in " :" else f": {sentence}"])


def _drawing(picture: _Picture | None) -> Html:
    if picture is None:
        return Html()
    width, height = picture.size
    return element("svg", element("title", picture.alt), *picture.parts, viewBox=f"0 0 {width} {height}", width=width,
                   height=height, role="img", class_="spark")  # fmt: skip


def _image(picture: _Picture | None) -> Html:
    """The drawing as an image with its data in it: Streamlit removes SVG elements from a page, but not images."""
    if picture is None:
        return Html()
    width, height = picture.size
    drawn = element("svg", *picture.parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}")
    return element("img", src=f"data:image/svg+xml,{quote(drawn)}", width=width, height=height, alt=picture.alt)
