"""The board of runs on a page: what each one does, its links and annotations, and whether it was asked to stop."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from altgrad.compare import Row
from altgrad.html.board import BOARD_STYLE, BoardRun, run_board
from altgrad.results.annotations import Annotation
from dashboard.data.board_lines import board_lines
from dashboard.page_context import PageContext
from dashboard.stop_form import asked_to_stop


def show_runs(context: PageContext, rows: Sequence[Row]) -> None:
    """A row per run, in the given order, with the loss of its BF16 run behind its own."""
    behind = {row.baseline for row in rows if row.baseline is not None} - {row.run for row in rows}
    lines = board_lines(context.sweep, [*rows, *(context.row[name] for name in sorted(behind) if name in context.row)])
    stopping, annotations = asked_to_stop(context), context.sweep.annotations.by_run
    trials = [
        BoardRun(row, context.address("run", run=row.run), annotations.get(row.run, Annotation()), row.run in stopping)
        for row in rows
    ]
    st.html(f"<style>{BOARD_STYLE}</style>{run_board(trials, lines)}")
