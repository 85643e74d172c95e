"""A table for a terminal of any width, in which nothing is cut off.

Rich shortens cells that do not fit to `…`, down to empty columns.  Here texts and headings wrap at spaces and numbers
stay whole; where even the narrowest columns do not fit side by side, the last ones are left out, and a line below the
table names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from altgrad.text.terminal_output import cell, one_line

_LONGEST = 32  # characters of a word, such as a run's name, from which on it is folded
_FOLDED = 8  # the same where the first column alone does not fit


@dataclass(frozen=True)
class FittedColumn:
    """A column: heading, a cell for each row, and the style of each cell ("" for none)."""

    head: str
    cells: Sequence[str]
    is_number: bool = False
    styles: Sequence[str] = ()

    @property
    def widest(self) -> int:
        """The width at which nothing wraps."""
        return max(cell_len(one_line(text)) for text in (self.head, *self.cells))

    def narrowest(self, longest: int = _LONGEST) -> int:
        """The width of the longest number or word; of a word at most `longest`."""
        numbers = [cell_len(one_line(text)) for text in self.cells] if self.is_number else []
        words = " ".join((self.head,) if self.is_number else (self.head, *self.cells)).split()
        return max([1, *numbers, *(min(cell_len(one_line(word)), longest) for word in words)])


class FittedTable:
    """Columns in the order of their importance, a title above, and sentences below.

    `elsewhere`: where a reader finds the columns that are left out, for the line that names them.  `lines`: of the
    screen that the whole may take; the first rows are shown, at least one, and the others are counted.  `sections`:
    (title, number of rows) of the parts into which the rows are divided, if they are.
    """

    def __init__(
        self,
        columns: Sequence[FittedColumn],
        title: str = "",
        notes: Sequence[str] = (),
        elsewhere: str = "",
        lines: int | None = None,
        sections: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._columns, self._title, self._notes, self._elsewhere = columns, title, notes, elsewhere
        self._lines, self._sections = lines, sections

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        widths = _widths(self._columns, options.max_width)
        if self._title:
            yield cell(self._title)
        notes = [cell(note) for note in (*self._notes, *self._left_out(len(widths)))]
        rows = self._rows(console, widths, sum(len(note.wrap(console, options.max_width)) for note in notes))
        yield from self._parts(rows, widths)
        hidden = (len(self._columns[0].cells) if self._columns else 0) - len(rows)
        yield from [cell(f"and {hidden} more"), *notes] if hidden else notes

    def _parts(self, rows: Sequence[Sequence[Text]], widths: Sequence[int]) -> Iterator[Table | Text]:
        """The table; with sections a table for each, whose columns stand below those of the first."""
        begin = 0
        for title, number in self._sections or [("", len(rows))]:
            if title:
                yield Text(one_line(title), "bold")
            shown = Table(
                box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, show_header=begin == 0
            )
            for column, width in zip(self._columns, widths, strict=False):
                justify = "right" if column.is_number else "left"
                shown.add_column(column.head, justify=justify, width=width, overflow="fold")  # type: ignore[arg-type]
            for row in rows[begin : begin + number]:
                shown.add_row(*row)
            yield shown
            begin += number

    def _left_out(self, fit: int) -> list[str]:
        heads = ", ".join(column.head for column in self._columns[fit:])
        where = f" ({self._elsewhere})" if self._elsewhere else ""
        return [f"too wide for this terminal{where}: {heads}"] if heads else []

    def _rows(self, console: Console, widths: Sequence[int], below: int) -> list[list[Text]]:
        """The first rows, as many as have room; `below`: lines of the notes."""
        columns = self._columns[: len(widths)]
        rows = [[_cell(column, n) for column in columns] for n in range(len(columns[0].cells) if columns else 0)]
        if self._lines is None:
            return rows

        def height(texts: Iterable[Text]) -> int:
            wrapped = (text.wrap(console, width, overflow="fold") for text, width in zip(texts, widths, strict=True))
            return max(map(len, wrapped))

        heads = height(cell(column.head) for column in columns) if columns else 0
        room = self._lines - below - heads - 1 - bool(self._title)  # a line below the headings
        ends = list(accumulate(map(height, rows)))
        if not ends or ends[-1] <= room:
            return rows
        return rows[: max(1, sum(end <= room - 1 for end in ends))]  # a line that counts the others


def _cell(column: FittedColumn, number: int) -> Text:
    text = cell(column.cells[number])
    text.stylize(column.styles[number] if column.styles else "")
    return text


def _widths(columns: Sequence[FittedColumn], available: int) -> list[int]:
    """The widths of the first columns, as many as fit side by side; the earlier ones are the first to grow."""

    def taken(widths: Sequence[int]) -> int:
        return sum(widths) + 2 * (len(widths) - 1)  # two spaces between cells

    widths: list[int] = []
    for column in columns:
        if widths and taken([*widths, column.narrowest()]) > available:
            break
        widths.append(column.narrowest())
    if taken(widths) > available:
        widths = [max(min(_FOLDED, columns[0].narrowest()), available)]
    for place, column in enumerate(columns[: len(widths)]):
        widths[place] += max(0, min(column.widest - widths[place], available - taken(widths)))
    return widths
