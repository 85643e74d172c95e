"""Overview: what runs now and how far it is, the newest verdicts, compute spent and saved; runs are stopped here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import streamlit as st

from altgrad.compare import Row
from altgrad.html.markup import element
from altgrad.metrics import METRICS
from altgrad.report.advising.sweep_evidence import happened
from altgrad.results import Status
from altgrad.show.drawn_curves import View, describe, non_finite_count
from altgrad.show.glossary import meaning
from altgrad.show.sweep_progress import (
    SweepProgress,
    best_sentence,
    newest_events,
    progress,
    spent_and_saved,
)
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import duration
from dashboard.annotation_form import annotation_form
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.curve_figures import curves_figure
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.stop_form import stop_form
from dashboard.trial_board import show_runs
from dashboard.views.curves import lines_of
from dashboard.widgets import show_texts, show_words

_NEWEST = 8
_TRIALS = 12
_MOST_LINES = 60
_COUNTED: Sequence[Status] = ("running", "completed", "collapsed", "failed")
_MEANT = {"collapsed": meaning("verdict")}
_VIEW = View("loss", buckets=150)


def show(context: PageContext) -> None:
    """The page."""
    st.title(f"Overview of {as_markdown(context.sweep.folder.name)}")
    every, planned = context.shown.all_rows, context.sweep.planned
    state = progress(every, context.sweep.runs, planned, time.time())
    _counts(every, planned, state)
    st.caption(f"{spent_and_saved(every, state)}.")
    _trials(context)
    stop_form(context, state.is_over)
    _curves(context, state.is_over)
    st.header("Best format against BF16")
    st.markdown(best_sentence(context.rows))
    _verdicts(context)
    _events(context)
    annotation_form(context)


def _counts(rows: Sequence[Row], planned: int | None, state: SweepProgress) -> None:
    counts = Counter(row.fate for row in rows)
    left = (
        "finished" if state.is_over else duration(state.seconds_left) if state.seconds_left is not None else "unknown"
    )
    others = counts["stopped"] + counts["killed"]
    facts: Sequence[tuple[str, str, str | None]] = (
        ("Runs", f"{len(rows)} of {planned}" if planned else str(len(rows)), "started, of those planned"),
        *((status.capitalize(), str(counts[status]), _MEANT.get(status)) for status in _COUNTED),
        ("Stopped or killed", str(others), f"Stopped: {meaning('stopped')}. Killed: {meaning('killed')}."),
        ("Steps", f"{state.steps:,} of {state.planned_steps:,}", "of all runs together"),
        ("Time left", left, "from the pace of all runs together since the sweep began"),
    )
    with st.container(horizontal=True, gap="medium"):
        for title, value, said in facts:
            st.metric(title, value, help=said, width="content")


def _trials(context: PageContext) -> None:
    """The running runs; where there are few, the newest ended ones after them."""
    running = [row for row in context.rows if row.status == "running"]
    ended = {run.name: float((run.end or {}).get("ended") or 0.0) for run in context.sweep.runs}
    others = sorted((row for row in context.rows if row.status != "running"), key=lambda row: -ended.get(row.run, 0.0))
    st.header(f"Running now: {len(running)}" if running else "No run is training: the newest ended runs")
    shown = [*sorted(running, key=lambda row: row.run), *others][: max(_TRIALS, len(running))]
    if not shown:
        st.info("All runs are hidden.")
        return
    show_runs(context, shown)
    left_out = len(context.rows) - len(shown)
    if left_out:
        more = "1 more run is" if left_out == 1 else f"{left_out} more runs are"
        context.link("sweep", f"{more} on the page Sweep", rows="run")


def _curves(context: PageContext, is_over: bool) -> None:
    st.header(METRICS["loss"].label, help=meaning("loss"))
    rows = context.rows[:_MOST_LINES]
    lines = lines_of(context, rows, _VIEW)
    if not lines:
        later = "" if is_over else " yet; the chart appears with the first step"
        st.caption(f"{METRICS['loss'].label} has not been measured{later}.")
        return
    figure = curves_figure(lines, _VIEW)
    figure.update_layout(height=380)
    alt = f"{METRICS['loss'].label} over steps: {describe(lines)}"
    said = "Shaded: steps with NaN or inf, with the last finite value marked." if non_finite_count(lines) else ""
    runs = f"{len(lines)} run{'s' if len(lines) > 1 else ''}"
    show_chart(figure, "overview loss", title=METRICS["loss"].label, n=runs, caption=said, alt=alt)
    if len(context.rows) > len(rows):
        st.caption(
            f"The first {len(rows)} of {len(context.rows)} runs by validation loss; the page Curves shows others."
        )


def _verdicts(context: PageContext) -> None:
    st.header("Newest verdicts", help=meaning("verdict"))
    shown = {row.run for row in context.rows}
    collapsed = [run for run in context.sweep.runs if run.verdict is not None and run.name in shown]
    if not collapsed:
        st.caption(f"{context.shown.none_collapsed}.")
        return
    collapsed.sort(key=_ended, reverse=True)
    rows = [
        (element("a", run.name, href=context.address("failures", run=run.name)), happened(context.row[run.name]))
        for run in collapsed[:_NEWEST]
    ]
    show_texts(("Run", "What happened"), rows, "The newest verdicts")
    if len(collapsed) > _NEWEST:
        st.caption(f"The newest {_NEWEST} of {len(collapsed)}; the page Failures has all.")


def _ended(run: WatchedRun) -> float:
    return float((run.end or {}).get("ended", 0.0))


def _events(context: PageContext) -> None:
    st.header("Newest events")
    shown = {row.run for row in context.rows}
    runs = [run for run in context.sweep.runs if run.name in shown]
    events = context.sweep.derived("newest events", lambda: newest_events(runs, _NEWEST))
    if not events:
        st.caption("The runs that are shown have recorded no event.")
        return
    show_words(events, "The newest events of all runs: run, kind, number of times, last step, particulars.")
