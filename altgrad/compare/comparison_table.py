"""The comparison as markdown, as CSV and on the terminal: columns and rows are the same, only the digits differ."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from altgrad.compare.groups import by_task, tasks_note
from altgrad.compare.parity.parity_table import parity_markdown
from altgrad.compare.rates import rates_markdown
from altgrad.compare.row import Row
from altgrad.compare.shown_rows import Shown
from altgrad.events import kind_of
from altgrad.metrics import METRICS
from altgrad.storage.folder import Folder
from altgrad.text.fitted_table import FittedColumn, FittedTable
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import ABSENT, difference, duration, number, table

_OFTEN_EQUAL = frozenset({"intervention", "seed", "learning_rate", "parity", "branched_from", "started_from"})
CellValue = str | int | float | None
_ALIKE = 0.005  # shares of rounded FLOPs that differ by less are the same model, measured on another batch
_STYLE = {"completed": "green", "collapsed": "red", "failed": "bold red", "running": "cyan"}


@dataclass(frozen=True)
class Column:
    """A column: its name in the CSV, its heading elsewhere, its exact value, and the value as shown text."""

    name: str
    head: str
    value: Callable[[Row], CellValue]
    shown: Callable[[Row], str]
    is_number: bool = True


def _text(name: str, head: str, value: Callable[[Row], str | None]) -> Column:
    return Column(name, head, value, lambda row: value(row) or ABSENT, is_number=False)


def _number(name: str, head: str, value: Callable[[Row], float | None], digits: int = 4) -> Column:
    return Column(name, head, value, lambda row: number(value(row), digits))


def _share(name: str, head: str, value: Callable[[Row], float | None]) -> Column:
    return Column(name, head, value, lambda row: _percent(value(row)))


def acts_text(row: Row) -> str:
    """`clip 12, format shift 1 (to E5M2)`: how often each intervention acted; "" if none did."""
    shift = f" (to {row.shifted_to})" if row.shifted_to else ""
    return ", ".join(
        f"{kind_of(kind).label} {n}{shift if kind == 'format_shift' else ''}" for kind, n in sorted(row.acts.items())
    )


def gap_text(row: Row) -> str:
    """The gap without its step; `baseline` for a baseline; else the sentence why there is no gap, or a dash."""
    if row.is_baseline:
        return "baseline"
    if row.gap is None:
        return (row.baseline is None and row.pairing) or ABSENT
    return difference(row.gap, row.loss_unit)


def gap_and_step(row: Row) -> str:
    """The gap with its step, for tables without a column for the step: `+0.1265 at step 500`."""
    return gap_text(row) + ("" if row.gap_step is None else f" at step {row.gap_step}")


def _percent(value: float | None) -> str:
    return number(None if value is None else 100 * value, 3) + ("" if value is None else " %")


COLUMNS: Sequence[Column] = (
    _text("run", "Run", lambda row: row.run),
    _text("format", "Format", lambda row: row.format),
    _text("variant", "Variant", lambda row: row.variant),
    _text("setting", "Setting", lambda row: row.setting),
    _share("rounded_share", "Rounded GEMMs", lambda row: row.rounded_share),
    _text("intervention", "Intervention", lambda row: row.intervention),
    _number("seed", "Seed", lambda row: row.seed),
    _number("learning_rate", METRICS["learning_rate"].label, lambda row: row.learning_rate, 3),
    _text("status", "Status", lambda row: row.status),
    _number("validation_loss", METRICS["validation_loss"].label, lambda row: row.validation_loss),
    _number("best_validation_loss", "Best", lambda row: row.best_validation_loss),
    Column("gap", "Gap to BF16", lambda row: row.gap, gap_text),
    _number("gap_step", "at step", lambda row: row.gap_step),
    _text("parity", "Parity", lambda row: None if row.parity is None else row.parity.word),
    _text("confounds", "Differs besides the format", lambda row: ", ".join(row.confounds)),
    _text("pairing", "Pairing", lambda row: row.pairing),
    _number("collapse_step", "Collapse step", lambda row: row.collapse_step),
    _text("reason", "Reason", lambda row: row.reason),
    _text("acts", "Interventions that acted", acts_text),
    _share("stall_rate", METRICS["stall_rate"].label, lambda row: row.stall_rate),
    _share("overflow_rate", METRICS["overflow_rate"].label, lambda row: row.overflow_rate),
    _number("bytes_per_parameter", "Bytes per parameter", lambda row: row.bytes_per_parameter, 3),
    _number("tokens_per_second", METRICS["tokens_per_second"].heading, lambda row: row.tokens_per_second, 3),
    _number("step", "Step", lambda row: row.step),
    _number("max_steps", "of", lambda row: row.max_steps),
    Column("seconds", "Time", lambda row: row.seconds, lambda row: duration(row.seconds)),
    _text("branched_from", "Branched from", lambda row: row.branched_from),
    _text("started_from", "Started from", lambda row: row.started_from),
    _text("device", "Device", lambda row: row.device),
    _number("device_hours", "Device-hours", lambda row: row.device_hours, 3),
    _number("device_hours_saved", "saved", lambda row: row.device_hours_saved, 3),
)


_NAMED = {column.name: column for column in COLUMNS}
# In order of importance: a narrow terminal has no room for the last ones.
_TERMINAL: Sequence[Column] = (
    _NAMED["run"],
    _text("format", "Format", lambda row: row.label),
    _NAMED["status"],
    _NAMED["validation_loss"],
    Column("gap", "Gap to BF16", lambda row: row.gap, gap_and_step),
    _NAMED["parity"],
    _text(
        "collapse",
        "Collapse",
        lambda row: f"{row.collapse_rule}, step {row.collapse_step}" if row.collapse_rule else None,
    ),
    _text("acts", "Acted", acts_text),
    _NAMED["intervention"],
    _NAMED["seed"],
    _NAMED["learning_rate"],
    _NAMED["branched_from"],
    _NAMED["started_from"],
    _NAMED["tokens_per_second"],
    _NAMED["stall_rate"],
    _NAMED["overflow_rate"],
    _NAMED["rounded_share"],
    _NAMED["bytes_per_parameter"],
    _NAMED["device_hours"],
    _NAMED["device_hours_saved"],
)


def comparison_markdown(rows: Sequence[Row]) -> str:
    """The comparison as a markdown table."""
    align = "".join("r" if column.is_number else "l" for column in COLUMNS)
    cells = ([as_markdown(column.shown(row)) for column in COLUMNS] for row in rows)
    found = table([column.head for column in COLUMNS], cells, align)
    return "\n\n".join([found, *map(as_markdown, notes_of(rows))])


def comparison_csv(rows: Sequence[Row], hidden: Collection[str] = ()) -> str:
    """The comparison as CSV with full precision: an absent value is empty; `nan` and `inf` as Python reads them.

    A file of data has no place for a sentence, so it has all `rows`, with `hidden` in the last column of those that
    people have hidden.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.name for column in COLUMNS), "hidden"])
    writer.writerows([*(column.value(row) for column in COLUMNS), "hidden" * (row.run in hidden)] for row in rows)
    return text.getvalue()


def comparison_table(rows: Sequence[Row]) -> FittedTable:
    """The comparison for a terminal: fewer columns than the files, and a collapse as its rule and step only.

    An intervention, seed, learning rate or branching point that is the same for all runs is below the table instead of
    in a column; a column without any value is left out.
    """
    shown, same = [], []
    for column in _TERMINAL:
        texts = {column.shown(row) for row in rows}
        if len(rows) > 1 and len(texts) == 1 and column.name in _OFTEN_EQUAL:
            same += [f"{column.head.lower()} {text}" for text in texts - {ABSENT}]
        elif texts != {ABSENT}:
            shown.append(column)
    columns = [
        FittedColumn(
            column.head,
            [column.shown(row) for row in rows],
            column.is_number,
            [_STYLE.get(row.status, "") for row in rows] if column.name == "status" else (),
        )
        for column in shown
    ]
    notes = [text for text in (", ".join(same), *notes_of(rows)) if text]
    within = ", within each task" if len(by_task(rows)) > 1 else ""
    title = f"Comparison, by validation loss{within}; runs that collapsed or ended early come last"
    return FittedTable(columns, title, notes, elsewhere="they are in comparison.md")


def notes_of(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table must know about its gaps, a sentence each; the same below every form of it."""
    tasks = by_task(rows)
    said = [tasks_note(rows)]
    for own in tasks.values():
        of_task = f"{own[0].task_label}: " if len(tasks) > 1 else ""
        said += [note and of_task + note for note in (coverage_note(own), held_out_note(own))]
    return [note for note in said if note is not None]


def held_out_note(rows: Sequence[Row]) -> str | None:
    """Why there is no gap, where runs have ended and none has a validation loss; None otherwise."""
    ended = any(row.status in ("completed", "collapsed") for row in rows)
    if not ended or any(row.validation_loss is not None for row in rows):
        return None
    return (
        "No run has a validation loss, so there is no gap to compare: the task holds no data out, or every run ended "
        "before its first evaluation. The training losses are in the curves."
    )


def coverage_note(rows: Sequence[Row]) -> str | None:
    """That runs differ in the share of the model that was rounded: their gap is then not one of formats alone.

    The sentence names the smallest and the largest share, with a run for each; None if all are alike.
    """
    known = sorted(
        ((row.rounded_share, row.run) for row in rows if row.rounded_share is not None), key=lambda one: one[0]
    )
    if not known or known[-1][0] - known[0][0] < _ALIKE:
        return None
    (least, one), (most, other) = known[0], known[-1]
    return (
        f"The runs differ in how much of the model is rounded: {least:.1%} of the GEMM FLOPs in {one}, {most:.1%} in "
        f"{other}. A difference between their losses is not one of number formats alone."
    )


def tables_markdown(shown: Shown) -> list[str]:
    """What is hidden, the comparison, the parity verdicts and the learning rates: paragraphs of a document."""
    tables = [*map(as_markdown, shown.notes), comparison_markdown(shown.rows), "## Parity", parity_markdown(shown.rows)]
    rates = rates_markdown(shown.all_rows, shown.hidden)
    return tables if rates is None else [*tables, "## Learning rates", rates]


def write_comparison(sweep: Folder, shown: Shown, below: str | None = None) -> None:
    """Write `comparison.md`, with the text `below` after its tables, and `comparison.csv` into the sweep's folder."""
    parts = [f"# Comparison: {as_markdown(sweep.name)}", *tables_markdown(shown), *([] if below is None else [below])]
    sweep.write_bytes("comparison.md", ("\n\n".join(parts) + "\n").encode())
    sweep.write_bytes("comparison.csv", comparison_csv(shown.all_rows, shown.hidden).encode())
