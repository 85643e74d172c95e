"""Sweep: a row per group of seeds or per run, drawn to be read at a glance, and as figures to sort and to export."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from altgrad.compare import STEP_COLUMNS, Row, by_group, by_task, loss_unit, parity_note
from altgrad.compare.comparison_table import notes_of
from altgrad.html.board import BOARD_STYLE, group_board
from altgrad.text.foreign_text import as_markdown
from dashboard.data.board_lines import board_lines
from dashboard.data.sweep_frame import CELL_COLUMNS, HEADS, columns_in, csv_of, group_frame, group_name, run_frame
from dashboard.page_context import PageContext
from dashboard.trial_board import show_runs
from dashboard.widgets import choose_kept, choose_many, choose_named, choose_one, show_table, switch

# Columns that are shown unless the viewer chooses others: below the drawn rows, those to sort by that fit 1024 pixels;
# where no rows are drawn, all that they would say.
_SHOWN = ("run", "group", "status", "validation_loss", "gap", "collapse_step")
_SHOWN_OF_GROUPS = (*_SHOWN, "parity")
_SHOWN_ALONE = (*_SHOWN_OF_GROUPS, "runs", "gap_step", "setting", "pairing", "branched_from", "progress")
_WIDEST = 180  # pixels of a column of texts
_BETTER_IF_LOWER = ("loss", "validation_loss", "best_validation_loss", "gap", "gap_low", "gap_high")
_MANY = 200  # with more rows there are no small loss curves: they would take longer than the rest of the page


def show(context: PageContext) -> None:
    """The page."""
    st.title("Sweep")
    context.sweep.prefetch(context.sweep.runs, "steps", [*STEP_COLUMNS, *CELL_COLUMNS])  # in one pass over the files
    rows = filtered(context)
    per_group = choose_one("One row per", {"group": "group of seeds", "run": "run"}, "rows") == "group"
    if not rows:
        st.info("No run matches the filters. Clear one of them." if context.rows else "All runs are hidden.")
        return
    if per_group and len(by_group(rows)) <= _MANY:
        _groups(context, rows)
    elif len(rows) > _MANY:
        what = f"{len(by_group(rows))} groups" if per_group else f"{len(rows)} runs"
        st.caption(f"{what}: filter to at most {_MANY} to see them with their gaps drawn.")
    else:
        show_runs(context, rows)
    for note in notes_of(rows):
        st.caption(as_markdown(note))
    _numbers(context, rows, per_group)


def _groups(context: PageContext, rows: Sequence[Row]) -> None:
    """The board of groups; the name of a group leads to its curves."""

    def link(row: Row) -> str:
        members = [one for one in rows if one.group == row.group]
        return context.address("curves", group=group_name(members))

    lines = board_lines(context.sweep, rows) if len(rows) <= _MANY else {}
    st.html(f"<style>{BOARD_STYLE}</style>{group_board(rows, lines, link, images=True)}")
    if not lines and len(rows) > _MANY:
        st.caption(f"{len(rows)} runs: filter to at most {_MANY} to see the loss curves of the groups, too.")
    st.caption(as_markdown(parity_note(rows)))


def _numbers(context: PageContext, rows: Sequence[Row], per_group: bool) -> None:
    """The same rows as figures, which can be sorted, with the columns that the viewer chooses."""
    st.header("All numbers")
    frame = group_frame(rows) if per_group else run_frame(rows, context.sweep, len(rows) <= _MANY)
    members = list(by_group(rows).values()) if per_group else [[row] for row in rows]
    left, middle, right = st.columns([2, 1, 1], vertical_alignment="bottom")
    with left:
        names = [name for name in frame.columns if name != "loss_curve"]
        by = choose_kept("Sort by", names, "sort", "validation_loss", format_func=HEADS.__getitem__)
    with middle:
        descending = switch("Descending", "descending")
    with right, st.popover("Columns"):
        usual = _SHOWN_ALONE if len(rows) > _MANY else _SHOWN_OF_GROUPS if per_group else _SHOWN
        default = [name for name in frame.columns if name in usual and _is_filled(frame, name)]
        shown = choose_named("Columns", {name: HEADS[name] for name in frame.columns}, "columns", default)
    frame = frame.sort_values(by, ascending=not descending, na_position="last", kind="stable")
    if by in _BETTER_IF_LOWER and not descending:  # a run that collapsed early is not the best
        lasted = pd.Series([_lasted(members[at]) for at in frame.index], index=frame.index)
        frame = frame.loc[lasted.sort_values(ascending=False, kind="stable").index]
    if by in _BETTER_IF_LOWER:  # losses of two tasks have no order
        order = list(by_task(rows))
        task = pd.Series([order.index(members[at][0].task) for at in frame.index], index=frame.index)
        frame = frame.loc[task.sort_values(kind="stable").index]
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


def _is_filled(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column that few sweeps need has something to say in this one."""
    if name in ("setting", "pairing", "branched_from"):
        return bool(frame[name].astype(bool).any())
    if name == "progress":
        return bool((frame["status"] == "running").any())
    return name != "collapse_step" or bool(frame[name].notna().any())


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
    unit = loss_unit(row for rows in members for row in rows)
    shown = columns_in(unit)
    picked = show_table(
        frame.rename(columns=HEADS),
        alt=f"One row per {what}: settings, status, losses, gap to the BF16 run of the same seed, collapse, speed.",
        widest=_WIDEST,
        column_config={HEADS[name]: shown[name] for name in frame.columns},
        on_select="rerun",
        selection_mode="single-row",
        key=f"table by {what}",
    )
    chosen = picked.selection.rows if picked else []
    if not chosen:
        said = f" Losses and gaps are in {unit}." if unit else ""
        steps = {row.gap_step for rows in members for row in rows if row.final_gap is not None}
        said += f" Gaps are those of step {steps.pop()}." if len(steps) == 1 else ""
        count = "1 row" if len(frame) == 1 else f"{len(frame)} rows"
        st.caption(f"{count}; select one to open it.{said}")
        return
    opened = members[frame.index[chosen[0]]]
    if per_group:
        context.open("curves", group=group_name(opened))
    else:
        context.open("run", run=opened[0].run)
