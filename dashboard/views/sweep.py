"""Sweep: a table with one row per run or per group of seeds, which can be sorted, filtered, exported and opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import pandas as pd
import streamlit as st

from altgrad.compare import STEP_COLUMNS, Row, by_group, loss_unit
from altgrad.html.group_board import BOARD_STYLE, group_board
from altgrad.show.drawn_curves import Line, View, line
from dashboard.data.sweep_frame import CELL_COLUMNS, COLUMNS, HEADS, csv_of, group_frame, group_name, run_frame
from dashboard.page_context import PageContext
from dashboard.widgets import choose_kept, choose_many, choose_named, choose_one, show_table, switch

_HIDDEN = ("learning_rate", "loss", "best_step")  # columns that the viewer must choose to see
_WHERE_THERE_IS_ANY = ("setting", "pairing")  # columns that are shown if a row has a value in them
_BETTER_IF_LOWER = ("loss", "validation_loss", "best_validation_loss", "gap", "gap_low", "gap_high")
_VIEW = View("loss", buckets=60)
_MANY = 200  # with more rows there are no small loss curves: they would take longer than the rest of the page


def show(context: PageContext) -> None:
    """The page."""
    st.title("Sweep")
    context.sweep.prefetch(context.sweep.runs, "steps", [*STEP_COLUMNS, *CELL_COLUMNS])  # in one pass over the files
    rows = filtered(context)
    if 0 < len(rows) <= _MANY:
        _board(context, rows)
    first, second, third, fourth = st.columns([2, 2, 1, 1], vertical_alignment="bottom")
    with first:
        per_group = choose_one("One row per", {"run": "run", "group": "group of seeds"}, "rows") == "group"
    if not rows:
        st.info("No run matches the filters. Clear one of them.")
        return
    frame = group_frame(rows) if per_group else run_frame(rows, context.sweep, len(rows) <= _MANY)
    members = list(by_group(rows).values()) if per_group else [[row] for row in rows]
    with second:
        names = [name for name in frame.columns if name != "loss_curve"]
        by = choose_kept("Sort by", names, "sort", "validation_loss", format_func=HEADS.__getitem__)
    with third:
        descending = switch("Descending", "descending")
    with fourth, st.popover("Columns"):
        default = [name for name in frame.columns if _is_shown(frame, name, per_group)]
        shown = choose_named("Columns", {name: HEADS[name] for name in frame.columns}, "columns", default)
    frame = frame.sort_values(by, ascending=not descending, na_position="last", kind="stable")
    if by in _BETTER_IF_LOWER and not descending:  # a run that collapsed early is not the best
        lasted = pd.Series([_lasted(members[at]) for at in frame.index], index=frame.index)
        frame = frame.loc[lasted.sort_values(ascending=False, kind="stable").index]
    frame = frame[[name for name in frame.columns if name in shown]]
    if not shown:
        st.info("Choose at least one column.")
        return
    _table(context, frame, members, per_group)
    st.download_button(
        "Download as CSV",
        csv_of(frame.drop(columns=["loss_curve"], errors="ignore").rename(columns=HEADS)),
        file_name=f"{context.sweep.folder.name}.csv",
        mime="text/csv",
        on_click="ignore",
    )


def _board(context: PageContext, rows: Sequence[Row]) -> None:
    """The groups at a glance; the table below has every column."""
    lines: dict[str, Line] = {}
    for row in rows:
        run = context.sweep.run(row.run)
        if run is None:
            continue
        drawn = context.sweep.remembered(run, "board line", partial(line, row, run, _VIEW))
        if drawn is not None:
            lines[row.run] = replace(drawn, row=row)
    sweep = quote(context.sweep.folder.name)

    def link(row: Row) -> str:
        members = [one for one in rows if one.group == row.group]
        return f"curves?sweep={sweep}&group={quote(group_name(members))}"

    st.html(f"<style>{BOARD_STYLE}</style>{group_board(rows, lines, link, images=True)}")


def _is_shown(frame: pd.DataFrame, name: str, per_group: bool) -> bool:
    """Whether a column is shown by default; some columns are not, or only if a row has a value in them."""
    if name in _WHERE_THERE_IS_ANY:
        return bool(frame[name].astype(bool).any())
    return per_group or name not in _HIDDEN


def _lasted(members: Sequence[Row]) -> bool:
    """Whether all runs of a row are alive; a group with one collapse must not be sorted to the top."""
    return all(row.alive for row in members)


def filtered(context: PageContext) -> list[Row]:
    """Draw the filters of the page and return the rows that pass them."""
    rows = context.rows
    columns = st.columns(4)
    kept: list[Row] = rows
    fields: Sequence[tuple[str, str, str]] = (  # title, name in the URL, attribute of a row
        ("Format", "format", "format"),
        ("Variant", "variant", "treatment"),
        ("Intervention", "intervention", "intervention"),
        ("Status", "status", "status"),
    )
    for column, (title, name, field) in zip(columns, fields, strict=True):
        options = sorted({getattr(row, field) or "default" for row in rows})
        with column:
            wanted = choose_many(title, options, name, placeholder="all")
        if wanted:
            kept = [row for row in kept if (getattr(row, field) or "default") in wanted]
    return kept


def _table(context: PageContext, frame: pd.DataFrame, members: Sequence[list[Row]], per_group: bool) -> None:
    """Show the frame and open the row that the viewer selects; its index is the position of a row in `members`."""
    what = "group of seeds" if per_group else "run"
    picked = show_table(
        frame.rename(columns=HEADS),
        alt=f"One row per {what}: settings, status, losses, gap to the BF16 run of the same seed, collapse, speed.",
        column_config={HEADS[name]: column for name, column in COLUMNS.items() if name in frame.columns},
        on_select="rerun",
        selection_mode="single-row",
        key=f"table by {what}",
    )
    chosen = picked.selection.rows if picked else []
    if not chosen:
        unit = loss_unit(row for rows in members for row in rows)
        said = f" Losses and gaps are in {unit}." if unit else ""
        st.caption(f"{len(frame)} rows; select one to open it.{said}")
        return
    opened = members[frame.index[chosen[0]]]
    if per_group:
        context.open("curves", group=group_name(opened))
    else:
        context.open("run", run=opened[0].run)
