"""What a sweep says at its end: on a terminal one screen, in a log everything.

A screen has room for the groups, for what went wrong, and for the runs to look at first.  It never scrolls what matters
out of sight: lines are counted as the terminal wraps them, and what is left out is counted in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

from altgrad.compare import Row, Shown, comparison_table, parity_table, rates_markdown
from altgrad.compare.comparison_table import gap_and_step
from altgrad.compare.parity.parity_table import parity_lines
from altgrad.compare.parity.verdict import Parity
from altgrad.report.advising.sweep_evidence import happened, survivor_sentence, survivors_like
from altgrad.text.fitted_table import FittedColumn, FittedTable
from altgrad.text.number_text import ABSENT
from altgrad.text.terminal_output import cell, say

_LINES_FOR_ONE = 12  # lines of the screen for each trouble, and for each group to look at first
_PROMPT = 2  # lines of the screen that are left to the shell


@dataclass(frozen=True)
class Ending:
    """The end of a sweep.  `shown`: its comparison.  `compute`: what it cost.  `reports`: run -> its failure report.

    `troubles`: what failed, was lost or cannot be read, a sentence each.  `places`: where results are, and commands
    that go on from here.
    """

    name: str
    shown: Shown
    compute: str | None
    reports: dict[str, str]
    troubles: Sequence[str]
    places: Sequence[str]

    def show(self, console: Console) -> None:
        """Print it."""
        if console.is_terminal:
            for part in self._screen(console):
                console.print(part)
            return
        console.print(comparison_table(self.shown.rows))
        if (parity := parity_table(self.shown.rows)) is not None:
            console.print(parity)
        lines = [rates_markdown(self.shown.all_rows, self.shown.hidden), *self.shown.notes, self.compute]
        lines += [f"failure report: {at}" for at in self.reports.values()]
        for line in (*lines, *self.troubles, *self.places):
            if line is not None:
                say(console, line)

    def _screen(self, console: Console) -> list[RenderableType]:
        """What fits one screen, in its order: the groups get the lines that the rest leaves."""
        every = self.shown.all_rows
        counts = Counter(row.fate for row in every)
        number = f"{len(every)} run{'s' * (len(every) != 1)}"
        head = f"{self.name}: {number}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common())
        looks = self._looks()
        most = max(1, console.height // _LINES_FOR_ONE)
        below: list[RenderableType] = [
            *map(cell, self.shown.notes),
            *([cell(self.compute)] if self.compute else []),
            *map(cell, _first(self.troubles, most, "more of these")),
            *([cell("Look first at:")] if looks else []),
            *map(cell, _first(looks, most, "more, on the dashboard's page of failures")),
            *map(cell, self.places),
        ]
        used = sum(len(console.render_lines(part)) for part in (cell(head), *below))
        return [cell(head), self._groups(console.height - used - _PROMPT), *below]

    def _groups(self, lines: int) -> RenderableType:
        """A row per group that is compared, the best first; of a sweep without any, a row per run."""
        found = parity_lines(self.shown.rows)
        heads: tuple[str, ...] = ("Run", "Gap to BF16")
        texts: list[tuple[str, ...]] = [(row.run, gap_and_step(row)) for row in self.shown.rows]
        if found:
            step = "".join(f" at step {at}" for at in _only({line.gap.step for line in found if line.gap.step}))
            margin = "".join(f" (margin {within})" for within in _only({line.parity.within for line in found}))
            heads = ("Group", f"Gap to BF16{step}", f"Verdict{margin}")
            texts = [
                (line.cells[0], (line.gap.figure or ABSENT).removesuffix(step or "-"), _short(line.parity))
                for line in found
            ]
        columns = [FittedColumn(head, [line[place] for line in texts]) for place, head in enumerate(heads)]
        return FittedTable(columns, lines=lines)

    def _looks(self) -> list[str]:
        """What to look at first: of each rule the collapse that came first, then those of other groups."""
        collapsed = sorted((row for row in self.shown.rows if row.collapsed), key=lambda row: row.collapse_step or 0)
        alike: dict[tuple[str | None, str], list[Row]] = {}
        for row in collapsed:
            alike.setdefault((row.collapse_rule, row.group_label), []).append(row)
        first = {rule: (rule, group) for rule, group in reversed(alike)}.values()
        return [self._look(alike[key]) for key in sorted(alike, key=lambda key: key not in first)]

    def _look(self, rows: Sequence[Row]) -> str:
        """`rows`: collapses of one group by one rule, the first one first."""
        row = rows[0]
        said = row.group_label + happened(row).removeprefix(row.label).removesuffix(".")
        said += f", and {len(rows) - 1} more like it" if len(rows) > 1 else ""
        survivors = survivors_like(row, self.shown.rows)[:1]
        instead = "".join(f"; {survivor_sentence(*one)}" for one in survivors)
        return f"  {said}{instead}: {self.reports.get(row.run, row.run)}"


def _only(found: Collection[Any]) -> Collection[Any]:
    """What was found, if it is one thing that all share."""
    return found if len(found) == 1 and all(found) else ()


def _short(parity: Parity) -> str:
    """The verdict in few words; the margin stands in the heading."""
    if parity.verdict == "collapsed":
        return parity.deaths
    if parity.verdict == "undecided" and parity.seeds is not None:
        return f"undecided, needs about {parity.seeds} seeds"
    return parity.verdict


def _first(sentences: Sequence[str], most: int, rest: str) -> list[str]:
    hidden = len(sentences) - most
    return [*sentences[:most], *([f"  and {hidden} {rest}"] if hidden > 0 else [])]
