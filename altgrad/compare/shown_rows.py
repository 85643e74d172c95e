"""Which runs a table, a chart or a document shows: all but those that people have hidden, which it names in words.

A run is hidden by its annotation in the sweep's folder (see `results.annotations`).  Hiding changes no number of
another run: the rows come from a comparison of all runs, and a hidden baseline is still subtracted.  Where a claim
would rest on the runs that are left of a group, there is none.  What a sweep cost and how far it is counts hidden runs,
too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from altgrad.compare.groups import find_group
from altgrad.compare.parity.verdict import hidden_words
from altgrad.compare.row import Row
from altgrad.results.annotations import read_annotations
from altgrad.storage.folder import Folder
from altgrad.text.error_hints import shown

_NAMED = 3  # hidden runs that a sentence names


@dataclass(frozen=True)
class Shown:
    """The rows of a comparison, and those of them to show.

    `hidden`: names of runs, also of runs that are not in the comparison.  `damage`: a sentence for each annotation
    that cannot be read.
    """

    all_rows: Sequence[Row]
    hidden: Collection[str] = frozenset()
    damage: Sequence[str] = ()

    @cached_property
    def rows(self) -> list[Row]:
        """The rows that are not hidden, in order; each knows how many runs of its group are (`Row.hidden_mates`)."""
        mates = Counter(row.group for row in self.all_rows if row.run in self.hidden)
        return [_beside_hidden(row, mates[row.group]) for row in self.all_rows if row.run not in self.hidden]

    @property
    def left_out(self) -> list[str]:
        """Names of the hidden runs of the comparison, in its order."""
        return [row.run for row in self.all_rows if row.run in self.hidden]

    def group(self, name: str) -> list[Row]:
        """`find_group` among the rows to show; raises ValueError also if all runs of the group are hidden."""
        wanted = find_group(self.all_rows, name)[0].group
        members = [row for row in self.rows if row.group == wanted]
        if not members:
            raise ValueError(f"all runs of {shown(name)} are hidden; --with-hidden counts them")
        return members

    @property
    def none_collapsed(self) -> str:
        """The sentence for a place where none of the rows has collapsed, without a full stop; hidden ones may have."""
        hidden = sum(row.collapse_step is not None for row in self.all_rows)
        return f"No run that is shown has collapsed; {hidden} hidden did" if hidden else "No run has collapsed"

    @property
    def notes(self) -> list[str]:
        """What is left out and how to see it, in a sentence or two; then what is wrong with the annotations."""
        names = self.left_out
        if not names:
            return list(self.damage)
        named = ", ".join(names[:_NAMED])
        if len(names) > _NAMED:
            named += f" and {len(names) - _NAMED} more"
        return [f"{hidden_words(len(names))} and left out: {named}. {_HOW}", *self.damage]


_HOW = (
    "To show hidden runs again, change their annotations on the dashboard's page Overview; altgrad compare and "
    "altgrad report count them with --with-hidden."
)


def shown_rows(sweep: Folder, rows: Sequence[Row], with_hidden: bool = False) -> Shown:
    """The rows of a sweep's comparison without the runs that people have hidden; `with_hidden`: all of them.

    Raises OSError if storage refuses to read the annotations.
    """
    if with_hidden:
        return Shown(rows)
    annotations = read_annotations(sweep)
    return Shown(rows, annotations.hidden, annotations.damage)


def _beside_hidden(row: Row, mates: int) -> Row:
    if not mates:
        return row
    parity = None if row.parity is None else replace(row.parity, verdict="no claim", p=None, hidden=mates)
    return replace(row, parity=parity, hidden_mates=mates)
