"""Two sweeps side by side: what became of each group in both, and the paired difference of its losses.

Groups are the same if their labels are: `E4M3 stored`, say.  A label has only what differs within its sweep, so that
what differs between the two sweeps (another rate, a new version) is named beside the difference, not in the label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from altgrad.compare.groups import by_group
from altgrad.compare.parity.confounds import FORMAT_ALONE
from altgrad.compare.parity.pairs import GroupDifference, group_difference
from altgrad.compare.parity.verdict import Terms
from altgrad.compare.row import Row
from altgrad.compare.statistics import collapse_step
from altgrad.text.fitted_table import FittedColumn, FittedTable
from altgrad.text.number_text import ABSENT

SWEEPS_HEADS = ("Group", "Here", "There", "Here minus there")


@dataclass(frozen=True)
class SweepsLine:
    """A group of one label in two sweeps; `difference` is None where one of them lacks it."""

    label: str
    here: Sequence[Row]
    there: Sequence[Row]
    difference: GroupDifference | None

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `SWEEPS_HEADS`."""
        said = ABSENT if self.difference is None else self.difference.said
        return self.label, _fate(self.here), _fate(self.there), said


def sweeps_lines(here: Iterable[Row], there: Iterable[Row], terms: Terms | None = None) -> list[SweepsLine]:
    """A line per group of either sweep: those of both first, then those of one alone."""
    ours, theirs = _by_label(here), _by_label(there)
    both = [(label, ours[label], theirs[label]) for label in ours if label in theirs]
    lines = [SweepsLine(label, mine, other, _between(mine, other, terms)) for label, mine, other in both]
    lines += [SweepsLine(label, ours[label], (), None) for label in ours if label not in theirs]
    return lines + [SweepsLine(label, (), theirs[label], None) for label in theirs if label not in ours]


def sweeps_table(lines: Sequence[SweepsLine], title: str) -> FittedTable:
    """The lines as a table for a terminal."""
    cells = zip(*(line.cells for line in lines), strict=True)
    return FittedTable([FittedColumn(head, texts) for head, texts in zip(SWEEPS_HEADS, cells, strict=True)], title)


def _between(here: Sequence[Row], there: Sequence[Row], terms: Terms | None) -> GroupDifference:
    found = group_difference(here, there, terms)
    named = f"{there[0].group_label} there"
    differs = "nothing that is stored" if found.differs == FORMAT_ALONE else found.differs
    return replace(found, other=named, differs=differs, parity=replace(found.parity, against=named))


def _by_label(rows: Iterable[Row]) -> dict[str, list[Row]]:
    return {members[0].group_label: list(members) for members in by_group(rows).values()}


def _fate(members: Sequence[Row]) -> str:
    """`2 completed, 1 collapsed, median step 110`; what became of a group's runs."""
    if not members:
        return "no such group"
    counts = Counter(row.fate for row in members)
    said = ", ".join(f"{number} {status}" for status, number in sorted(counts.items(), reverse=True))
    step = collapse_step(members)
    return said if step is None else f"{said}, {'median ' if counts['collapsed'] > 1 else ''}step {step:g}"
