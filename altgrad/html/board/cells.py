"""The cells that boards share: names, status, figures of a gap, and heads that explain themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources

from altgrad.compare import PairedGap, Row
from altgrad.html.markup import Html, element, join
from altgrad.show.glossary import meaning
from altgrad.show.palette import ALARM, NEUTRAL, format_colour
from altgrad.text.number_text import ABSENT, difference

BOARD_STYLE = resources.files("altgrad.html.board").joinpath("board.css").read_text()


def board(heads: Sequence[Html], body: Iterable[Html], label: str, kind: str = "") -> Html:
    """A table in a box that scrolls sideways and takes the keyboard focus; `kind`: a class of its own for the style."""
    head = element("thead", element("tr", join(element("th", one, scope="col") for one in heads)))
    drawn = element("table", head, element("tbody", join(body, "\n")), class_=f"board {kind}".strip())
    return element("div", drawn, class_="board-scroll", tabindex=0, role="region", aria_label=label)


def text_board(heads: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> Html:
    """A board of texts alone, which are folded rather than cut off; the first of a row is its heading."""
    body = (
        element("tr", element("th", first, scope="row"),
                *(element("td", cell, data_head=title) for cell, title in zip(others, heads[1:], strict=True)))
        for first, *others in rows
    )  # fmt: skip
    return board([head(title) for title in heads], body, label, "texts")


def head(title: str, word: str | None = None) -> Html:
    """The head of a column; `word`: its meaning is shown when the pointer rests on the head."""
    return join([title]) if word is None else element("abbr", title, title=meaning(word))


def named(title: str, row: Row, where: str | None, notes: Iterable[str | Html]) -> Html:
    """The format's colour and a name, which links to `where`, with small lines below."""
    swatch = element("span", class_="swatch", style=f"background:{format_colour(row.format)}")
    name = join([swatch, title if where is None else element("a", title, href=where)])
    return join([name, *(element("div", note, class_="small") for note in notes)])


def facts_of(members: Sequence[Row]) -> list[str | Html]:
    """What a reader must know about the runs of one group: coverage, where they branched or started from."""
    shares = {round(row.rounded_share, 3) for row in members if row.rounded_share is not None}
    said: list[str | Html] = []
    if shares:
        low, high = min(shares), max(shares)
        covered = f"{low:.1%} of FLOPs rounded" if low == high else f"{low:.1%} to {high:.1%} of FLOPs rounded"
        said.append(element("abbr", covered, title=meaning("coverage")))
    branches = dict.fromkeys(row.branched_from for row in members if row.branched_from)
    said += [f"branched from {name}" for name in branches]
    starts = dict.fromkeys(row.started_from for row in members if row.started_from)
    said += [f"started from {name}" for name in starts]
    return said


_MARKS = 12  # runs of a group that have a mark each: more do not fit into the column


def was_cut_short(row: Row) -> bool:
    """Whether the run collapsed, failed or was killed."""
    return row.collapsed or row.status in ("failed", "killed")


def statuses(members: Sequence[Row]) -> Html:
    """`●●✕ 1 collapsed, 2 completed`: shape and word say what the colour says; of many runs only the words."""
    marks = join(
        element("span", "✕" if was_cut_short(row) else "○" if row.status == "running" else "●",
                title=f"{row.run}: {row.status}", style=f"color:{ALARM if was_cut_short(row) else NEUTRAL}")
        for row in (members if len(members) <= _MARKS else ())
    )  # fmt: skip
    counts = Counter(row.fate for row in members)
    said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    return join([marks, " ", element("span", said, class_="small")])


def figure(members: Sequence[Row], gap: PairedGap) -> Html:
    """The gap in figures; NaN as NaN, and for a group without a final gap the last one that was measured."""
    if members[0].is_baseline:
        said = "baseline"
    elif gap.non_finite and gap.mean is None:
        said = "NaN"
    elif gap.figure is not None:
        said = gap.figure + (f", {gap.non_finite} at NaN" if gap.non_finite else "")
    else:
        ends = [_last_gap(row) for row in members if row.gap is not None]
        without = "" if any(row.baseline for row in members) else "no BF16 run of this seed"
        said = ends[0] if ends else members[0].pairing or without or ABSENT
    return element("div", said, class_="small")


def _last_gap(row: Row) -> str:
    """A gap that is no final one: its run ended before the common step, or its BF16 run did."""
    gap = ABSENT if row.gap is None else difference(row.gap, row.loss_unit, 3)
    why = "before it died" if was_cut_short(row) else "the last of both" if row.alive else "before it was stopped"
    return f"{gap} at step {row.gap_step}, {why}"
