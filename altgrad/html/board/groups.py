"""The board of groups: status, gap as an interval on a common scale, parity verdict in words, loss curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from altgrad.compare import PairedGap, Row, by_group, by_task, paired_gap, parity_lines
from altgrad.html.board.cells import board, facts_of, figure, head, named, statuses
from altgrad.html.board.drawings import Bars, Sparks, as_image, in_page, one_scale
from altgrad.html.markup import Html, element, join
from altgrad.metrics import METRICS
from altgrad.show.drawn_curves import Line
from altgrad.text.number_text import ABSENT

_HEADS = (("Group", "group"), ("Runs", "run"), ("Gap to BF16", "gap"), ("Parity", "parity verdict"))
# The heading of each cell, and the class by which it is styled.
_CELLS = (
    ("Runs", None),
    ("Gap to BF16", "gap"),
    ("Parity", "parity"),
    (METRICS["loss"].label, None),
)
_LOSS = (METRICS["loss"].label, "loss")


def group_board(
    rows: Sequence[Row], lines: Mapping[str, Line], link: Callable[[Row], str | None], images: bool = False
) -> Html:
    """A row per group, baselines first.

    `lines`: run -> its loss curve.  `link`: where a group's name leads, or None.  `images`: the drawings are images.
    """
    groups = [members for own in by_task(rows).values() for members in _in_order(own)]
    gaps = [paired_gap(members) for members in groups]
    draw = as_image if images else in_page
    bars, sparks = Bars.by_task(groups, gaps), Sparks.by_task(rows, lines)
    body = []
    for members, gap in zip(groups, gaps, strict=True):
        cells = [
            statuses(members),
            join([draw(bars[members[0].task].drawn(members[0], gap)), figure(members, gap)]),
            _parity(members, gap),
        ]
        if sparks:
            own_scale = sparks.get(members[0].task)
            cells.append(draw(None if own_scale is None else own_scale.drawn(members, lines)) or Html(ABSENT))
        own = (
            element("td", cell, class_=kind, data_head=title)
            for cell, (title, kind) in zip(cells, _CELLS, strict=False)
        )
        name = named(members[0].group_label, members[0], link(members[0]), facts_of(members))
        body.append(element("tr", element("th", name, scope="row"), *own))
    heads = [head(*one) for one in ((*_HEADS, _LOSS) if sparks else _HEADS)]
    return join([board(heads, body, "Groups of runs"), element("p", _note(bars, sparks, rows), class_="board-note")])


def _in_order(rows: Sequence[Row]) -> list[list[Row]]:
    """The groups of one task, baselines first."""
    groups = [members for members in by_group(rows).values() if any(row.is_baseline for row in members)]
    return groups + [list(line.members) for line in parity_lines(rows)]


def _note(bars: Mapping[str, Bars], sparks: Mapping[str, Sparks], rows: Sequence[Row]) -> str:
    """What the drawings show; nothing about those that no row has."""
    said, used = [], [own for own in bars.values() if own.is_used]
    if used:
        said.append(f"Bars: 95 % interval of the gap on {one_scale(used, rows)}; an arrow leaves it.")
        shaded = any(own.margin is not None for own in used)
        said += ["Shaded: the margin within which a group is equivalent."] if shaded else []
    if sparks:
        scale = "one scale" if len(sparks) == 1 else "a scale for each task"
        said.append(f"Loss: training loss on {scale}; a cross marks where a run died.")
    return " ".join(said)


def _parity(members: Sequence[Row], gap: PairedGap) -> Html:
    if members[0].is_baseline or gap.parity is None:
        return Html("reference")
    word = "not as good" if gap.parity.verdict == "collapsed" else gap.parity.verdict  # some may have reached NaN
    return join([element("strong", word), gap.parity.sentence.removeprefix(word)])
