"""The card on top of a run that collapsed, on the pages Run and Failures.

It says what happened, what moved first, what caused it where that was tested, and what to try, with the evidence of
this very sweep and a command to copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from altgrad.config.train_config import ConfigError
from altgrad.metrics import METRICS, described
from altgrad.report import stored_report
from altgrad.report.advising.sweep_evidence import happened, suggestions, sweep_command
from altgrad.report.evidence import Evidence
from altgrad.report.signals import Departure, Signals
from altgrad.report.tested_cause import ARM_COLUMNS, arm_cells, explanation_of
from altgrad.results import Run
from altgrad.show.glossary import RULES
from altgrad.text.foreign_text import as_code, as_command, as_markdown, without_pictures
from altgrad.text.number_text import number
from dashboard.copy_button import command_with_button
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.signal_strips import signals_of
from dashboard.page_context import PageContext
from dashboard.widgets import show_words

_SHOWN = 3
_MOVED = 2


def evidence_of(context: PageContext, run: WatchedRun) -> Evidence | None:
    """The evidence of a collapsed run; None, with a warning, if its config cannot be read."""
    try:
        return context.sweep.remembered(run, "evidence", partial(Evidence.of, run))
    except ConfigError as error:
        st.warning(f"The forensics of this run cannot be drawn: {as_markdown(str(error))}")
        return None


def signals_in(context: PageContext, evidence: Evidence) -> Signals:
    """What moved before the verdict of a run on a page; computed once per run."""
    run = context.sweep.run(evidence.run.name)
    assert run is not None  # the page shows it
    return context.sweep.remembered(run, "signals", partial(signals_of, evidence))


def verdict_card(context: PageContext, evidence: Evidence) -> None:
    """The card of a collapsed run."""
    run, row = evidence.run, context.row[evidence.run.name]
    with st.container(border=True):
        st.error(as_markdown(happened(row)))
        st.markdown(_rule(evidence), help=RULES.get(evidence.verdict.rule))
        _moved_first(signals_in(context, evidence).moved)
        _cause(run)
        _what_to_try(context, evidence)


def _rule(evidence: Evidence) -> str:
    """The rule that judged, with the value and its limit, as markdown."""
    verdict = evidence.verdict
    measured = f"{described(verdict.metric).label.lower()} {number(verdict.value)}, limit {number(verdict.limit)}"
    return f"**Rule** {as_code(verdict.rule)}: {as_markdown(measured)}."


def _moved_first(moved: Sequence[Departure]) -> None:
    said = "; ".join(map(_departure, moved[:_MOVED])) or "no signal left its own early level before the verdict"
    more = f"; then {len(moved) - _MOVED} more" if len(moved) > _MOVED else ""
    st.markdown(f"**What moved first**: {said}{more}.", help="\n\n".join(map(_meaning, moved[:_MOVED])) or None)


def _meaning(moved: Departure) -> str:
    metric = METRICS[moved.metric]
    return as_markdown(f"{metric.label}: {metric.meaning}.")


def _departure(moved: Departure) -> str:
    return f"{METRICS[moved.metric].label.lower()} at step {moved.step} ({moved.change})"


def _cause(run: Run) -> None:
    record = explanation_of(run)
    if record is None or not record["arms"]:
        command = as_command(["altgrad", "explain", str(run.folder)])
        st.markdown(f"**Cause**: not tested. {as_code(command)} replays the collapse with one thing healed at a time.")
        return
    found = record["conclusion"]
    confidence = as_markdown(found["confidence"]) + ("" if record["finished"] else " (not finished)")
    st.markdown(f"**Cause, tested**: {as_markdown(found['sentence'])} Confidence: {confidence}.")


def _what_to_try(context: PageContext, evidence: Evidence) -> None:
    found = suggestions(evidence, context.row[evidence.run.name], context.rows)[:_SHOWN]
    if not found:
        st.markdown("**What to try**: nothing that was measured points to a cause that a config change would remove.")
        return
    lines = []
    for place, one in enumerate(found, start=1):
        lines.append(f"{place}. {one.said}")
        lines += [f"    - **In this sweep**: {as_markdown(proof)}." for proof in one.tried[:_SHOWN]]
    st.markdown("**What to try**\n" + "\n".join(lines))
    command_with_button(sweep_command(evidence.config, found[0].changes), "the first of these as a command")


def replays(run: WatchedRun) -> None:
    """A table of all replays that tested the cause; nothing for a run that was not explained."""
    record = explanation_of(run)
    if record is None or not record["arms"]:
        return
    st.header("Replays that tested the cause")
    for note in record["notes"]:
        st.caption(as_markdown(f"{note[:1].upper()}{note[1:]}."))
    rows = [dict(zip(ARM_COLUMNS, arm_cells(arm), strict=True)) for arm in record["arms"]]
    show_words(rows, "Replays of the collapse: what was changed, whether it collapsed, losses.")


def folded_report(run: WatchedRun) -> None:
    """The failure report of a collapsed run, folded."""
    with st.expander("Failure report"):
        try:
            text = stored_report(run)
        except (ValueError, OSError) as error:
            st.caption(f"The report cannot be written: {as_markdown(str(error))}")
            return
        st.markdown(without_pictures(text))
