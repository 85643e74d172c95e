"""Failures: the collapsed runs, and for one of them the signals and layers that moved first, and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import streamlit as st

from altgrad.compare import Row
from altgrad.metrics import METRICS
from altgrad.report.evidence import Evidence
from altgrad.text.foreign_text import as_code, as_markdown
from dashboard.data.sweep_frame import frame_of
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.signal_strips import alike, first_layers, strips_figure
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.verdict_card import evidence_of, folded_report, replays, signals_in, verdict_card
from dashboard.widgets import choose_run, shortened, show_events, show_table, show_words


def show(context: PageContext) -> None:
    """The page."""
    st.title("Failures")
    collapsed = [row for row in context.rows if row.collapse_step is not None]
    other = [row for row in context.rows if row.status in ("failed", "killed") and row.collapse_step is None]
    if other:
        names = ", ".join(f"{as_code(row.run)} ({as_markdown(row.status)} at step {row.step})" for row in other[:10])
        st.warning(f"Ended without a verdict: {names}{' and others' if len(other) > 10 else ''}.")
    if not collapsed:
        st.info(
            f"{context.shown.none_collapsed}. A run that does is shown here: what happened, what moved first, what "
            "to try, and the signals and layers up to the verdict."
        )
        return
    runs = [run for row in sorted(collapsed, key=_severity) if (run := context.sweep.run(row.run)) is not None]
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        run = choose_run(runs)
    with right:
        _counts(collapsed)
    _forensics(context, run, collapsed)
    _triage(context, collapsed)
    folded_report(run)


def _counts(collapsed: Sequence[Row]) -> None:
    counts = Counter(row.collapse_rule for row in sorted(collapsed, key=_severity))
    said = ", ".join(f"**{as_markdown(str(rule))}** {n}" for rule, n in counts.items())
    st.markdown(f"{len(collapsed)} collapsed: {said}")


def _severity(row: Row) -> tuple[str, int]:
    return row.collapse_rule or "", row.collapse_step or 0


def _triage(context: PageContext, collapsed: Sequence[Row]) -> None:
    """All collapsed runs; a click on one shows it."""
    st.header("All runs that collapsed")
    frame = frame_of([_cells(context, row) for row in sorted(collapsed, key=_severity)])
    columns = {
        "Group": st.column_config.TextColumn(help="Runs that differ in nothing but the seed."),
        "Rule": st.column_config.TextColumn(help="The collapse rule that judged the run; the look-up has each one."),
        "Value": st.column_config.NumberColumn(format="%.4g", help="What the rule judges, at that step."),
    }
    alt = "Collapsed runs by rule: run, group, rule, step, value."
    picked = show_table(frame, alt, on_select="rerun", selection_mode="single-row", key="triage", column_config=columns)
    chosen = picked.selection.rows if picked else []
    if chosen:
        context.open("failures", run=str(frame.iloc[chosen[0]]["Run"]))


def _cells(context: PageContext, row: Row) -> dict[str, Any]:
    run = context.sweep.run(row.run)
    verdict = None if run is None else run.verdict
    return {
        "Run": row.run,
        "Group": row.group_label,
        "Rule": row.collapse_rule,
        "Step": row.collapse_step,
        "Value": None if verdict is None else float(verdict.value),
    }


def _forensics(context: PageContext, run: WatchedRun, collapsed: Sequence[Row]) -> None:
    evidence = evidence_of(context, run)
    if evidence is None:
        return
    verdict_card(context, evidence)
    signals, baseline = signals_in(context, evidence), context.baseline_of(run)
    st.header("What moved first")
    if signals.moved:
        alt = (
            f"One strip per signal of {run.name} up to the verdict, in the order in which they left their early level."
        )
        show_chart(
            strips_figure(evidence, signals, baseline),
            "strips",
            title=f"What moved first in {run.name}",
            n="1 run",
            caption="Band: the signal's own early level. Dot: the step at which the signal left it. Dashed: the "
            "verdict. Dotted: the rule's limit." + (" Grey: the BF16 run of the same seed." if baseline else ""),
            alt=alt,
        )
    else:
        st.caption("No signal left its own early level before the verdict.")
    replays(run)
    _layers(evidence)
    left, right = st.columns([1, 2])
    with left:
        _alike(context, run, collapsed)
    with right:
        show_events(evidence.events)


def _layers(evidence: Evidence) -> None:
    st.header("Layers that moved first")
    found = first_layers(evidence)
    if not found:
        st.caption("No layer left its own early level before the verdict, or no layer was measured.")
        return
    show_words(
        [
            {
                "Step": departure.step,
                "Layer": layer,
                "Site": site,
                "Signal": METRICS[departure.metric].label,
                "Change": departure.change,
            }
            for layer, site, departure in found
        ],
        "Layers in the order in which they left their early level.",
    )


def _alike(context: PageContext, run: WatchedRun, collapsed: Sequence[Row]) -> None:
    st.header("Runs with the same verdict")
    found = alike(context.row[run.name], collapsed)
    if not found:
        st.caption("No other run collapsed by the same rule.")
    for row in found[:8]:
        context.link("failures", f"{shortened(row.run)}: step {row.collapse_step}", run=row.run)
