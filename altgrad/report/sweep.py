"""The sweep report: the comparison, the statistics over seeds, and every collapse with a link to its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from altgrad.compare import Row, by_group, comparison, comparison_markdown, paired_gap, rescue_matrix
from altgrad.compare.statistics import ENOUGH_SEEDS, RescueCell
from altgrad.markdown import ABSENT, number, table
from altgrad.results import list_runs
from altgrad.storage import Folder


def sweep_report(sweep: Folder) -> str:
    """A sweep folder's report as markdown.  Raises ValueError where there is no run in it."""
    runs, broken = list_runs(sweep)
    if not runs and not broken:
        raise ValueError(f"{sweep}: no run here; a sweep is a folder of run folders, each with a run.json")
    rows = comparison(runs)
    reported = {run.name for run in runs if run.folder.has("failure_report.md")}
    folders = {run.name: run.folder.name for run in runs}
    parts = [f"# Sweep: {sweep.name}", _counts(rows), "## Comparison", comparison_markdown(rows)]
    if len({row.seed for row in rows}) > 1:
        parts += ["## Over seeds", _seeds(rows)]
    if len({row.intervention for row in rows}) > 1:
        parts += ["## Rescues", _matrix(rows)]
    parts += ["## Collapses", _collapses(rows, folders, reported)]
    if broken:
        lines = "\n".join(f"- `{name}`: {reason}" for name, reason in broken.items())
        parts += ["## Folders that cannot be read", lines]
    return "\n\n".join(parts) + "\n"


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row.status for row in rows)
    return f"{len(rows)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()) + "."


def _seeds(rows: Sequence[Row]) -> str:
    cells = [
        [
            group[0].label,
            group[0].intervention,
            f"{group[0].learning_rate:g}",
            str(len(group)),
            paired_gap(group).sentence,
        ]
        for group in by_group(rows).values()
        if not any(row.is_baseline for row in group)
    ]
    return table(["Format", "Intervention", "Learning rate", "Runs", "Gap to BF16, paired by seed"], cells, "llrrl")


def _matrix(rows: Sequence[Row]) -> str:
    matrix = rescue_matrix(rows)
    interventions = list(dict.fromkeys(sorted((key[2] for key in matrix), key=lambda name: (name != "none", name))))
    labels = {(row.format, row.variant): row.label for row in rows}
    cells = [
        [label, *(_cell(matrix.get((fmt, variant, name))) for name in interventions)]
        for (fmt, variant), label in sorted(labels.items())
    ]
    note = "Survived of ended runs; paired gap to BF16 in nats; median collapse step."
    return f"{note}\n\n{table(['Format', *interventions], cells, 'l' * (1 + len(interventions)))}"


def _cell(cell: RescueCell | None) -> str:
    if cell is None:
        return ABSENT
    said = [f"{cell.survived} of {cell.ended}"]
    if cell.gap.mean is not None:
        interval = "" if cell.gap.low is None else f" [{cell.gap.low:+.3f}, {cell.gap.high:+.3f}]"
        said.append(f"{cell.gap.mean:+.3f}{interval}" + (f" (n = {cell.gap.n})" if cell.gap.n < ENOUGH_SEEDS else ""))
    if cell.median_collapse_step is not None:
        said.append(f"step {number(cell.median_collapse_step)}")
    return "; ".join(said)


def _collapses(rows: Sequence[Row], folders: dict[str, str], reported: set[str]) -> str:
    collapsed = sorted((row for row in rows if row.status == "collapsed"), key=lambda row: row.collapse_step or 0)
    if not collapsed:
        return "None."
    lines = []
    for row in collapsed:
        link = f" ([failure report]({folders[row.run]}/failure_report.md))" if row.run in reported else ""
        lines.append(f"- `{row.run}`, {row.label}: {row.reason or 'no verdict recorded'}{link}")
    return "\n".join(lines)
