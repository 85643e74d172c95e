"""The sweep report: the comparison, the statistics over seeds, and every collapse with a link to its failure report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from altgrad.compare import (
    RescueCell,
    Row,
    comparison,
    loss_unit,
    matrix_axes,
    planned_terms,
    rescue_matrix,
    shown_rows,
)
from altgrad.compare.comparison_table import tables_markdown
from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from altgrad.text.foreign_text import as_code, as_markdown
from altgrad.text.number_text import ABSENT, table


def sweep_report(sweep: Folder, margin: float | None = None, with_hidden: bool = False) -> str:
    """The report of a sweep folder as markdown.  Raises ValueError if it contains no run.

    `margin`: of the parity verdicts, in the unit of the losses; default: the sweep's own.  `with_hidden`: with the runs
    that people have hidden.
    """
    runs, broken = list_runs(sweep)
    if not runs and not broken:
        raise ValueError(f"{sweep}: no run here; a sweep is a folder of run folders, each with a run.json")
    shown = shown_rows(sweep, comparison(runs, planned_terms(sweep, margin)), with_hidden)
    rows = shown.rows
    reported = {run.name for run in runs if run.folder.has("failure_report.md")}
    folders = {run.name: run.folder.name for run in runs}
    parts = [f"# Sweep: {as_markdown(sweep.name)}", _counts(shown.all_rows), "## Comparison", *tables_markdown(shown)]
    if len({row.intervention for row in rows}) > 1:
        parts += ["## Rescues", _matrix(rows)]
    parts += ["## Collapses", _collapses(rows, folders, reported)]
    if broken:
        lines = "\n".join(f"- {as_code(name)}: {as_markdown(reason)}" for name, reason in broken.items())
        parts += ["## Folders that cannot be read", lines]
    damage = [sentence for run in runs for sentence in run.damage_sentences()]
    if damage:
        parts += ["## Damaged parts", "\n".join(f"- {sentence}" for sentence in damage)]
    return "\n\n".join(parts) + "\n"


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row.fate for row in rows)
    return f"{len(rows)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()) + "."


def _matrix(rows: Sequence[Row]) -> str:
    matrix = rescue_matrix(rows)
    axes, interventions = matrix_axes(matrix)
    labels = {(row.format, row.treatment): row.label for row in rows}
    cells = [
        [as_markdown(labels[axis]), *(_cell(matrix.get((*axis, name))) for name in interventions)] for axis in axes
    ]
    unit = loss_unit(rows)
    gap = f"paired gap to BF16 in {unit}" if unit else "paired gap to BF16"
    note = f"Survived of ended runs; {gap}; median collapse step."
    head = ["Format", *(as_markdown(name) for name in interventions)]
    return f"{note}\n\n{table(head, cells, 'l' * len(head))}"


def _cell(cell: RescueCell | None) -> str:
    return ABSENT if cell is None else "; ".join(cell.lines)


def _collapses(rows: Sequence[Row], folders: dict[str, str], reported: set[str]) -> str:
    collapsed = sorted((row for row in rows if row.collapsed), key=lambda row: row.collapse_step or 0)
    if not collapsed:
        return "None."
    lines = []
    for row in collapsed:
        where = quote(folders[row.run])
        link = f" ([failure report]({where}/failure_report.md))" if row.run in reported else ""
        said = as_markdown(row.reason or "no verdict recorded")
        lines.append(f"- {as_code(row.run)}, {as_markdown(row.label)}: {said}{link}")
    return "\n".join(lines)
