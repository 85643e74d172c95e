"""Overview: progress of the sweep, compute spent and saved, the best group, the newest collapses and events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from altgrad.compare import Row
from altgrad.results import Status
from altgrad.show.sweep_progress import SweepProgress, best_sentence, compute_sentence, newest_events, progress
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import duration
from dashboard.page_context import PageContext
from dashboard.widgets import shortened, show_table

_NEWEST = 12
_COUNTED: Sequence[Status] = ("running", "completed", "collapsed", "failed")


def show(context: PageContext) -> None:
    """The page."""
    rows = context.rows
    st.title(f"Overview of {as_markdown(context.sweep.folder.name)}")
    planned = context.sweep.planned
    _counts(rows, planned)
    _work(progress(rows, context.sweep.runs, planned, time.time()))
    compute = compute_sentence(rows)
    if compute is not None:
        st.caption(compute)
    st.subheader("Best format against BF16")
    st.markdown(best_sentence(rows))
    left, right = st.columns([2, 3])
    with left:
        _collapses(context)
    with right:
        _events(context)


def _counts(rows: Sequence[Row], planned: int | None) -> None:
    counts = Counter(row.status for row in rows)
    columns = st.columns(6)
    columns[0].metric("Runs", f"{len(rows)} of {planned}" if planned else str(len(rows)))
    for column, status in zip(columns[1:], _COUNTED, strict=False):
        column.metric(status.capitalize(), counts[status])
    columns[5].metric("Stopped or killed", counts["stopped"] + counts["killed"])


def _work(state: SweepProgress) -> None:
    columns = st.columns(4)
    columns[0].metric("Steps", f"{state.steps:,} of {state.planned_steps:,}")
    left = (
        "finished" if state.is_over else duration(state.seconds_left) if state.seconds_left is not None else "unknown"
    )
    columns[1].metric("Time left", left, help="from the pace of all runs together since the sweep began")
    columns[2].metric("Compute spent", duration(state.spent), help="training time, summed over runs")
    columns[3].metric(
        "Saved by early stopping",
        duration(state.saved),
        help="time for the remaining steps of collapsed and stopped runs, at each run's own pace",
    )


def _collapses(context: PageContext) -> None:
    st.subheader("Newest collapses")
    collapsed = [run for run in context.sweep.runs if run.verdict is not None]
    if not collapsed:
        st.caption("No run has collapsed.")
        return
    collapsed.sort(key=lambda run: -float((run.end or {}).get("ended", 0.0)))
    for run in collapsed[:_NEWEST]:
        verdict = run.verdict
        if verdict is not None:
            label = f"{shortened(run.name)}: {verdict.rule.replace('_', ' ')} at step {verdict.step}"
            context.link("failures", label, run=run.name)


def _events(context: PageContext) -> None:
    st.subheader("Newest events")
    events = context.sweep.derived("newest events", lambda: newest_events(context.sweep.runs, _NEWEST))
    if not events:
        st.caption("No event has been recorded.")
        return
    frame = pd.DataFrame(events)
    frame["Run"] = frame["Run"].map(shortened)
    show_table(frame, alt="The newest events of all runs: run, kind, number of times, last step, particulars.")
