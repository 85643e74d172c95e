"""The sections of the page except the failures: overview, comparison, curves, rescues.

The numbers come from the functions that the dashboard and the CSV use; this module only converts them to HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from altgrad.compare import (
    RATE_HEADS,
    RescueCell,
    Row,
    Shown,
    by_task,
    comparison_csv,
    loss_unit,
    matrix_axes,
    pairs_note,
    parity_lines,
    parity_note,
    rate_lines,
    rates_note,
    rescue_matrix,
)
from altgrad.compare.comparison_table import COLUMNS, Column, notes_of
from altgrad.compare.parity.parity_table import HEADS
from altgrad.compare.parity.verdict import ENOUGH_SEEDS
from altgrad.html.drawing.charts import Curves, legend, overlay, panel
from altgrad.html.markup import Html, element, join, scrolling, table
from altgrad.html.prose import sentence
from altgrad.html.sweep_contents import METRIC, Contents
from altgrad.metrics import METRICS, described
from altgrad.show.drawn_curves import describe, non_finite_count
from altgrad.show.palette import format_colour, share_colour
from altgrad.show.sweep_progress import best_sentence, newest_events, planned_runs, progress, spent_and_saved
from altgrad.text.number_text import ABSENT, duration

_NEWEST = 12
Links = Mapping[str, str]  # run name -> link to its failure report on the page


def overview(contents: Contents, links: Links, now: float) -> Html:
    """Progress of the sweep, compute spent and saved, the best group, the newest collapses and events."""
    rows, runs, planned = contents.shown.all_rows, list(contents.runs.values()), planned_runs(contents.sweep)
    state = progress(rows, runs, planned, now)
    counts = Counter(row.fate for row in rows)
    left = "finished" if state.is_over else "unknown" if state.seconds_left is None else duration(state.seconds_left)
    facts = {
        "Runs": f"{len(rows)} of {planned}" if planned else str(len(rows)),
        "Running": str(counts["running"]),
        "Completed": str(counts["completed"]),
        "Collapsed": str(counts["collapsed"]),
        "Failed": str(counts["failed"]),
        "Stopped or killed": str(counts["stopped"] + counts["killed"]),
        "Steps": f"{state.steps:,} of {state.planned_steps:,}",
        "Time left": left,
    }
    cards = join(element("div", element("dt", name), element("dd", value)) for name, value in facts.items())
    return join(
        [
            element("dl", cards, class_="facts"),
            element("p", f"{spent_and_saved(rows, state)}."),
            element("h3", "Best format against BF16"),
            *(element("p", sentence(said)) for said in best_sentence(contents.rows).split("\n\n")),
            *_collapses(contents, links),
            *_events(contents),
        ]
    )


def unreadable(contents: Contents) -> Html:
    """A sentence for each run folder and part that cannot be read; empty if there is none."""
    said = [join([element("code", name), f": {reason}"]) for name, reason in contents.broken.items()]
    for name, parts in contents.damaged.items():
        shown = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        said.append(join([element("code", name), f": damaged parts are left out: {shown}"]))
    if not said:
        return Html()
    listed = element("ul", join(element("li", one) for one in said))
    title = element("h2", "What cannot be read", id="unreadable")
    return element("section", title, listed, class_="warning", aria_labelledby="unreadable")


def comparison_section(contents: Contents, curves: Curves | None, links: Links) -> Html:
    """The comparison, one row per run, with each cell's exact value, and a link that downloads it as CSV."""
    rows, shown = contents.rows, contents.shown
    filled = [column for column in COLUMNS if any(column.value(row) not in (None, "") for row in rows)]
    head = [filled[0].head, *(["Loss curve"] if curves else []), *(column.head for column in filled[1:])]
    align = "l" + "l" * bool(curves) + "".join("r" if column.is_number else "l" for column in filled[1:])
    body = []
    for row in rows:
        first, *others = (_cell(column, row, links) for column in filled)
        body.append([first, *([curves.spark(row)] if curves else []), *others])
    where = "data:text/csv;charset=utf-8," + quote(comparison_csv(shown.all_rows, shown.hidden), safe="")
    download = element("a", "Download as CSV", href=where, download=f"{contents.sweep.name}.csv")
    of_task = " of a task" if len(by_task(rows)) > 1 else ""
    within = " within each task" if len(by_task(rows)) > 1 else ""
    said = (
        f"One row per run, by validation loss{within}; runs that collapsed or ended early come last. A gap is the "
        f"validation loss minus that of the BF16 run of the same seed{_in_unit(rows)}, at the step beside it, "
        f"which is the same for all runs alive{of_task}."
    )
    empty = [column.head for column in COLUMNS if column not in filled]
    said += f" Columns without a value for any run are left out: {', '.join(empty)}." if empty else ""
    below = [element("p", note) for note in notes_of(rows)]
    drawn = table(head, body, "Comparison of the runs", align)
    return join([element("p", said), drawn, *below, element("p", download)])


def curves_section(curves: Curves | None, own: Sequence[Curves]) -> Html:
    """A chart of all loss curves on one scale, a chart per format, and a chart of each metric of the runs' tasks."""
    return join([_loss_curves(curves), *_own_curves(own)])


def _own_curves(own: Sequence[Curves]) -> list[Html]:
    if not own:
        return []
    drawn = (
        element("figure", scrolling(overlay(one), described(one.metric).label), element("figcaption", one.metric))
        for one in own
    )
    return [*(one.shared() for one in own), element("h3", "Metrics of the task"), *drawn, legend(own[0])]


def _loss_curves(curves: Curves | None) -> Html:
    if curves is None:
        return element("p", f"{METRICS[METRIC].label} has not been measured in any run.")
    formats = sorted({one.row.format for one in curves.lines})
    said = "The scale is that of the healthy runs; triangles mark where a line leaves it, diamonds a collapse."
    broken = non_finite_count(curves.lines)
    if broken:
        in_runs = sum(bool(one.spans) for one in curves.lines)
        said += f" {broken} non-finite values in {in_runs} of {len(curves.lines)} runs"
        said += ": shaded, with a cross at the last finite value."
    whole = element("figure", scrolling(overlay(curves), "Loss curves"), legend(curves), element("figcaption", said))
    if len(formats) < 2:
        return join([curves.shared(), whole])
    panels = (
        element("figure", panel(curves, name), element("figcaption", _panel_caption(curves, name))) for name in formats
    )
    multiples = element("div", join(panels), class_="panels")
    return join([curves.shared(), whole, element("h3", "By format"), multiples])


def rescues_section(shown: Shown) -> Html:
    """The rescue matrix, and the parity verdict on each group."""
    rows = shown.rows
    cells = rescue_matrix(rows)
    sites, interventions = matrix_axes(cells)
    head = [Html("Format"), *interventions]
    body = [
        [_format(fmt, treatment), *(_matrix_cell(cells.get((fmt, treatment, name))) for name in interventions)]
        for fmt, treatment in sites
    ]
    said = (
        f"Survived of ended runs; gap to the BF16 run of the same seed{_in_unit(rows)} with 95 % interval and its "
        f"step; median collapse step. Hatched: fewer than {ENOUGH_SEEDS} ended runs."
    )
    matrix = element("div", table(head, body, "Rescue matrix: format by intervention"), class_="matrix")
    return join([element("p", said), matrix, element("h3", "Parity with BF16"), _parity(rows), *_rates(shown)])


def _in_unit(rows: Sequence[Row]) -> str:
    unit = loss_unit(rows)
    return f" in {unit}" if unit else ""


def _parity(rows: Sequence[Row]) -> Html:
    lines = parity_lines(rows)
    if not lines:
        return element("p", "There is nothing to compare with BF16.")
    body = [list(line.cells) for line in lines]
    said = f"{parity_note(rows)} {pairs_note(rows)}".strip()
    return join([table(list(HEADS), body, "Parity of each group with BF16", "lrlll"), element("p", said)])


def _rates(shown: Shown) -> list[Html]:
    lines = rate_lines(shown.all_rows, shown.hidden)
    if not lines:
        return []
    body = [list(line.cells) for line in lines]
    title = element("h3", "Learning rates")
    return [
        title,
        table(list(RATE_HEADS), body, "Best learning rate of each format", "lrllrr"),
        element("p", rates_note(shown.rows)),
    ]


def _collapses(contents: Contents, links: Links) -> list[Html]:
    title = element("h3", "Newest collapses")
    shown = {row.run for row in contents.rows}
    collapsed = [run for run in contents.runs.values() if run.verdict is not None and run.name in shown]
    if not collapsed:
        return [title, element("p", f"{contents.shown.none_collapsed}.")]
    collapsed.sort(key=lambda run: -float((run.end or {}).get("ended", 0.0)))
    items = []
    for run in collapsed[:_NEWEST]:
        verdict = run.verdict
        if verdict is not None:
            said = f"{run.name}: {verdict.rule.replace('_', ' ')} at step {verdict.step}"
            items.append(element("li", element("a", said, href=links.get(run.name))))
    return [title, element("ul", join(items))]


def _events(contents: Contents) -> list[Html]:
    runs = (contents.runs[row.run] for row in contents.rows)
    title, found = element("h3", "Newest events"), newest_events(runs, _NEWEST)
    if not found:
        return [title, element("p", "The runs that are shown have recorded no event.")]
    rows = [[str(cell) for cell in event.values()] for event in found]
    align = "".join("l" if isinstance(cell, str) else "r" for cell in found[0].values())
    return [title, table(list(found[0]), rows, "Newest events of all runs", align)]


def _cell(column: Column, row: Row, links: Links) -> Html:
    shown, exact = column.shown(row), column.value(row)
    if column.name == "run" and row.run in links:
        return element("a", shown, href=links[row.run])
    if column.name == "format":
        return _format(row.format, "")
    if column.name == "status":
        return element("span", shown, class_=f"status {row.status}")
    if column.name == "reason":
        return element("span", shown, class_="reason")
    return element("data", shown, value=str(exact)) if column.is_number and exact is not None else join([shown])


def _format(fmt: str, treatment: str) -> Html:
    swatch = element("span", style=f"background:{format_colour(fmt)}", class_="swatch")
    return join([swatch, f"{fmt} {treatment}".strip()])


def _panel_caption(curves: Curves, name: str) -> Html:
    own = [one for one in curves.lines if one.row.format == name]
    return join([element("strong", name), ": ", describe(own)])


def _matrix_cell(cell: RescueCell | None) -> Html:
    if cell is None:
        return element("span", ABSENT, class_="none")
    first, *others = cell.lines
    few = " few" if cell.ended < ENOUGH_SEEDS else ""
    said = join([element("strong", first), *(element("span", other) for other in others)])
    colour = f"background-color:{share_colour(cell.share)}"
    return element("div", said, class_=f"cell{few}", style=colour, title=", ".join(cell.runs))
