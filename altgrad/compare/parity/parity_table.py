"""The table of parity verdicts: a line per group, the same in every document, on the terminal and on the pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from altgrad.compare.groups import by_group, by_task
from altgrad.compare.parity.confounds import joined
from altgrad.compare.parity.student_t import CONFIDENCE
from altgrad.compare.parity.verdict import Parity, Terms
from altgrad.compare.row import Row, loss_unit
from altgrad.compare.statistics import PairedGap, paired_gap
from altgrad.results import RecordError, read_plan
from altgrad.storage.folder import Folder
from altgrad.text.fitted_table import FittedColumn, FittedTable
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import ABSENT, table

HEADS = ("Group", "Runs", "Gap to BF16", "Parity", "Differs from BF16 in")


@dataclass(frozen=True)
class ParityLine:
    """A group against its baselines.  `differs`: what differs besides the seed, or `only the format`."""

    members: Sequence[Row]
    gap: PairedGap
    parity: Parity
    differs: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `HEADS`."""
        name, gap = self.members[0].group_label, self.gap.figure or ABSENT
        return name, str(len(self.members)), gap, self.parity.sentence, self.differs


def parity_lines(rows: Iterable[Row]) -> list[ParityLine]:
    """A line per group that is no baseline: whole groups by their mean gap, then those with deaths or without a gap.

    The lines of a task stand together: gaps of two are no order (see `by_task`).
    """
    return [line for own in by_task(rows).values() for line in _of_one_task(own)]


def _of_one_task(rows: Sequence[Row]) -> list[ParityLine]:
    lines = []
    for members in by_group(rows).values():
        gap = paired_gap(members)
        if gap.parity is not None and not any(row.is_baseline for row in members):
            compared = [row.confounds for row in members if row.baseline is not None]
            differs = joined(compared) if compared else members[0].pairing or "no baseline to compare with"
            lines.append(ParityLine(members, gap, gap.parity, differs))
    return sorted(lines, key=lambda line: (not line.gap.is_whole, line.gap.mean is None, line.gap.mean or 0.0))


def parity_note(rows: Iterable[Row]) -> str:
    """How the verdicts of a comparison were reached, in a sentence or two."""
    rows = list(rows)
    found = [row.parity for row in rows if row.parity is not None]
    margins = list(dict.fromkeys(one.within for one in found if one.within))
    within = f"margin {', '.join(margins)}; " if margins else ""
    tested = sorted({one.tested for one in found if one.tested > 1})
    many = f", corrected for {' or '.join(map(str, tested))} groups by Holm's method" if tested else ""
    many += " within each task" if many and len({row.task for row in rows}) > 1 else ""
    looks = max((one.looks for one in found), default=1)
    many += f", and for {looks} looks at a growing number of seeds" if looks > 1 else ""
    return (
        f"Paired by seed: {within}two one-sided t tests, {CONFIDENCE:.0%} t intervals{many}. Equivalent: the interval "
        "lies inside the margin; worse or better: beyond it."
    ).replace("%", " %")


def pairs_note(rows: Iterable[Row]) -> str:
    """What the hashes of the runs that were compared say, in a sentence; "" where one has not recorded them."""
    compared = [row for row in rows if row.gap is not None and not row.is_baseline]
    vouched = compared and not any(row.pairing for row in compared)
    return "Both runs of a pair saw the same batches from the same initial weights." if vouched else ""


def parity_markdown(rows: Sequence[Row]) -> str:
    """The table of verdicts as markdown, with its note; a sentence if no group can be compared."""
    lines = parity_lines(rows)
    if not lines:
        return "There is nothing to compare with BF16."
    unit = loss_unit(rows)
    heads = [f"{head} ({unit})" if unit and head == HEADS[2] else head for head in HEADS]
    cells = ([as_markdown(text) for text in line.cells] for line in lines)
    return f"{table(heads, cells, 'lrlll')}\n\n{parity_note(rows)}"


def parity_table(rows: Sequence[Row]) -> FittedTable | None:
    """The table of verdicts for a terminal; None if no group has more than one seed: the rows say it all then."""
    lines = parity_lines(rows)
    if not any(line.gap.n > 1 for line in lines):
        return None
    unit = loss_unit(rows)
    cells = list(zip(*(line.cells for line in lines), strict=True))
    columns = [FittedColumn(head, texts, head == "Runs") for head, texts in zip(HEADS, cells, strict=True)]
    title = "Parity with BF16" + (f", gaps in {unit}" if unit else "")
    return FittedTable(columns, title, [parity_note(rows)], elsewhere="they are in comparison.md")


def planned_terms(sweep: Folder, margin: float | None = None) -> Terms:
    """The terms with which a sweep was started, with `margin` for its own if one is given."""
    try:
        plan = read_plan(sweep)
    except (RecordError, OSError):
        return Terms(margin)
    looks = (plan.get("more_seeds") or {}).get("looks", 1)
    return Terms(plan.get("margin") if margin is None else margin, looks)
