"""The table of a sweep's runs while they train: one for the sweep's own display and for `altgrad status`.

Its widths are chosen when it is printed.  On a narrow terminal the less important columns are left out, and long names
and reasons are folded; run, step, loss and status with its reason are always there.  A number is never cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from altgrad.metrics import METRICS
from altgrad.text.number_text import ABSENT, difference, duration, number
from altgrad.text.terminal_output import cell, one_line

LIVE_METRICS = ("loss", "gap_to_baseline", "stall_rate", "overflow_rate")  # of the step table, one column each
_STYLE = {
    "running": "cyan",
    "completed": "green",
    "collapsed": "red",
    "failed": "bold red",
    "killed": "yellow",
    "waiting": "dim",
}
_LEFT_OUT_FIRST = ("overflow_rate", "stall_rate", "eta", "format", "gap_to_baseline")
# A column, and the width down to which it is folded: in this order, until the table fits.
_FOLDS = (("status", 32), ("run", 24))  # before columns are left out
_TIGHT_FOLDS = (("status", 16), ("run", 8))  # only where leaving columns out was not enough
_LONGEST = 3  # lines of a status, where the height is limited


@dataclass(frozen=True)
class LiveRow:
    """The newest values of a run; a metric that was not measured is absent from `newest`.

    `eta`: seconds until its last step; None if it does not train or the pace is unknown.  `is_silent`: it is running,
    but its lease was not renewed in time.  `warning`: a sentence that a collapse is likely; shown while the run trains.
    """

    run: str
    format: str
    status: str
    step: int
    max_steps: int
    newest: Mapping[str, float]
    reason: str = ""
    is_baseline: bool = False
    is_silent: bool = False
    eta: float | None = None
    warning: str = ""
    loss_unit: str = "nats"

    @property
    def status_text(self) -> str:
        """`collapsed: stalled at step 30`: the status with its reason; of a run that trains with its warning."""
        if self.reason:
            return f"{self.status}: {self.reason}"
        warning = f": {self.warning}" if self.warning and self.status == "running" else ""
        return f"{self.status}{', silent' * self.is_silent}{warning}"


@dataclass(frozen=True)
class _Column:
    name: str
    head: str
    shown: Callable[[LiveRow], str]
    is_number: bool = True


def _gap(row: LiveRow) -> str:
    if row.is_baseline:
        return "baseline"
    gap = row.newest.get("gap_to_baseline")
    return ABSENT if gap is None else difference(gap, row.loss_unit, 3)


def _percent(name: str) -> Callable[[LiveRow], str]:
    def shown(row: LiveRow) -> str:
        share = row.newest.get(name)
        return ABSENT if share is None else f"{number(100 * share, 3)} %"

    return shown


def _eta(row: LiveRow) -> str:
    return ABSENT if row.eta is None else duration(round(row.eta))


_SHOWN: Mapping[str, Callable[[LiveRow], str]] = {
    "loss": lambda row: number(row.newest.get("loss"), 4),
    "gap_to_baseline": _gap,
    "stall_rate": _percent("stall_rate"),
    "overflow_rate": _percent("overflow_rate"),
}
_COLUMNS = (
    _Column("run", "Run", lambda row: row.run, is_number=False),
    _Column("format", "Format", lambda row: row.format, is_number=False),
    _Column("step", "Step", lambda row: f"{row.step}/{row.max_steps}"),
    *(_Column(name, METRICS[name].heading, _SHOWN[name]) for name in LIVE_METRICS),
    _Column("status", "Status", lambda row: row.status_text, is_number=False),
    _Column("eta", "ETA", _eta),
)


def progress_line(row: LiveRow) -> str:
    """What a log shows of a running run: `10/100  loss 5.25  training vs BF16 +0.125  ...  ETA 12 min 5 s`."""
    heads = {name: METRICS[name].heading for name in LIVE_METRICS}
    measured = (f"{head[0].lower()}{head[1:]} {_SHOWN[name](row)}" for name, head in heads.items())
    return "  ".join([f"{row.step}/{row.max_steps}", *measured, f"ETA {_eta(row)}"])


class LiveTable:
    """The table, for `rich` to print: a row per run, and a caption that counts all runs by status.

    With `lines`, the rows take about that many lines of the screen and at least one row is shown: those that come first
    in `importance` (positions in `rows`).  They are shown in the order of `rows`.
    """

    def __init__(self, rows: Sequence[LiveRow], lines: int | None = None, importance: Sequence[int] = ()) -> None:
        self._rows = rows
        self._lines = lines
        self._importance = importance

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        if self._lines is None:
            widths = _widths(self._rows, options.max_width)
            yield self._table(self._rows, widths)
            return
        candidates = self._importance[: max(1, self._lines)]
        widths = _widths([self._rows[index] for index in candidates], options.max_width)
        shown: list[int] = []
        used = 0
        for index in candidates:
            used += self._height(console, self._rows[index], widths)
            if shown and used > self._lines:
                break
            shown.append(index)
        yield self._table([self._rows[index] for index in sorted(shown)], widths)

    def _table(self, rows: Sequence[LiveRow], widths: Mapping[str, int]) -> Table:
        counts = Counter(row.status for row in self._rows)
        caption = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        if len(rows) < len(self._rows):
            caption += f"; {len(rows)} of {len(self._rows)} shown"
        table = Table(caption=cell(caption), caption_justify="left")
        shown = [column for column in _COLUMNS if column.name in widths]
        for column in shown:
            table.add_column(
                column.head,
                justify="right" if column.is_number else "left",
                width=widths[column.name],
                overflow="fold",
                no_wrap=column.is_number,
            )
        for row in rows:
            table.add_row(*(self._cell(column, row, widths) for column in shown), style=_STYLE.get(row.status, ""))
        return table

    def _cell(self, column: _Column, row: LiveRow, widths: Mapping[str, int]) -> Text:
        text = cell(column.shown(row))
        if self._lines is not None and column.name == "status":
            text.truncate(_LONGEST * widths["status"], overflow="ellipsis")
        return text

    def _height(self, console: Console, row: LiveRow, widths: Mapping[str, int]) -> int:
        folded = [column for column in _COLUMNS if column.name in dict(_FOLDS)]
        return max(
            len(self._cell(column, row, widths).wrap(console, widths[column.name], overflow="fold"))
            for column in folded
        )


def _widths(rows: Sequence[LiveRow], available: int) -> dict[str, int]:
    """The width of each column that is shown, without borders; together they fit, but on a very narrow terminal."""
    widths = {
        column.name: max(cell_len(text) for text in (column.head, *(one_line(column.shown(row)) for row in rows)))
        for column in _COLUMNS
    }

    def excess() -> int:
        return sum(widths.values()) + 3 * len(widths) + 1 - available  # a border and two spaces a column, a last border

    spared = sum(max(0, widths[name] - narrowest) for name, narrowest in _FOLDS)
    for name in _LEFT_OUT_FIRST:
        if excess() > spared:
            del widths[name]
    for name, narrowest in (*_FOLDS, *_TIGHT_FOLDS):
        widths[name] = max(min(widths[name], narrowest), widths[name] - max(0, excess()))
    return widths
