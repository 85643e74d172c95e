"""Run: state, curves, config, events and checkpoints of one run, and the commands that train it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from altgrad.compare import Row
from altgrad.compare.comparison_table import gap_text
from altgrad.compare.pairing import DEFAULTS
from altgrad.metrics import METRICS, columns, described
from altgrad.results import read_events
from altgrad.results.reading.own_metrics import own_names
from altgrad.show.drawn_curves import View, describe, line
from altgrad.show.glossary import WORDS
from altgrad.text.foreign_text import as_code, as_command, as_file_name, as_here_document, as_markdown
from altgrad.text.number_text import ABSENT, duration, number
from altgrad.text.yaml_text import to_yaml
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.curve_figures import curves_figure, put_behind
from dashboard.figures.curve_marks import add_moments
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.verdict_card import evidence_of, folded_report, verdict_card
from dashboard.views.curve_choices import automatic_half_life
from dashboard.widgets import choose_named, choose_run, show_events, show_table, show_words, value_text

_FIRST = ("loss", "validation_loss", "stall_rate", "overflow_rate")
_LEGEND = {"orientation": "h", "y": -0.3, "yanchor": "top"}  # above is the verdict's rule
_FACTS = (
    *("host", "device", "resources", "workers", "threads", "compiled", "compile_reason", "git_commit", "parameters"),
    *("vocabulary", "unigram_entropy", "initial_weights_hash", "batches_hash", "attempt"),
)
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def show(context: PageContext) -> None:
    """The page."""
    st.title("Run")
    run = choose_run(sorted(context.sweep.runs, key=lambda run: run.name), default=context.of_interest)
    row = context.row[run.name]
    evidence = None if run.verdict is None else evidence_of(context, run)
    if evidence is not None:
        verdict_card(context, evidence)
        context.link("failures", "All signals and layers up to the verdict", run=run.name)
    _state(context, run, row)
    _curves(context, run, row)
    _config(run)
    left, right = st.columns(2)
    with left:
        _facts(run)
    with right:
        show_events(read_events(run))
        _checkpoints(run)
    st.header("Train it again")
    st.code(reproduce(run), language="bash")
    if run.verdict is not None:
        folded_report(run)


def _state(context: PageContext, run: WatchedRun, row: Row) -> None:
    at = "" if row.gap_step is None else f" at step {row.gap_step:,}"
    gap = ABSENT if row.gap is None and not row.is_baseline else gap_text(row)
    facts = {
        "Status": (row.status.capitalize(), None),
        "Step": (f"{row.step:,} of {row.max_steps:,}", None),
        METRICS["validation_loss"].label: (number(row.validation_loss), METRICS["validation_loss"].meaning),
        f"Gap to BF16{at}": (gap, WORDS["gap"]),
        "Time": (duration(row.seconds), METRICS["elapsed_seconds"].meaning),
    }
    with st.container(horizontal=True, gap="large"):
        for label, (value, meaning) in facts.items():
            st.metric(label, value, help=meaning, width="content")
    if row.status == "killed":
        st.warning("The run was killed: it has no end record. The page shows everything that it wrote until then.")
    if run.branch_words:
        st.caption(f"Branched from {as_markdown(run.branch_words)}.")
    if row.pairing:
        st.caption(f"Gap to BF16: {as_markdown(row.pairing)}.")
    if run.verdict is None and row.reason is not None:
        st.error(as_markdown(f"{row.status.capitalize()}: {row.reason}"))
    for part, reason in run.tables.broken_parts().items():
        st.warning(
            f"{as_code(part)} is damaged and left out; the rows of the other parts are shown. ({as_markdown(reason)})"
        )


def _curves(context: PageContext, run: WatchedRun, row: Row) -> None:
    own = own_names(run)
    names = {name: described(name).axis_in(run.loss_unit) for name in (*columns("step"), *own)}
    shown = choose_named("Metrics", names, "metrics", _FIRST)
    events, baseline = read_events(run), context.baseline_of(run)
    cells: Sequence[Any] = []
    for position, metric in enumerate(shown):
        if position % 2 == 0:
            cells = st.columns(2 if len(shown) > 1 else 1)
        with cells[position % 2]:
            st.markdown(f"**{as_markdown(names[metric])}**", help=as_markdown(described(metric).meaning))
            view = View(metric, half_life=automatic_half_life(metric, [row]))
            one = line(row, run, view)
            if one is None:
                st.caption(f"{described(metric).label} has not been measured in this run.")
                continue
            figure = curves_figure([one], view)
            behind = None if baseline is None else line(context.row[baseline.name], baseline, view)
            if behind is not None:
                put_behind(figure, behind)
            add_moments(figure, one, events, row.collapse_step)
            figure.update_layout(height=280, legend=_LEGEND, showlegend=len(figure.data) > 1)
            alt = f"{described(metric).label} of {run.name} over steps: {describe([one])}"
            show_chart(figure, f"run {metric}", title=f"{described(metric).label} of {run.name}", n="1 run", alt=alt)


def _config(run: WatchedRun) -> None:
    st.header("Config")
    changed = changed_fields(run.config)
    if changed:
        rows = [{"Field": name, "Value": value_text(value)} for name, value in changed.items()]
        show_words(rows, "The fields of the run's config that differ from the default, with their values.")
    else:
        st.caption("Every field has its default value.")
    usual = [{"Field": name, "Value": value_text(run.config[name])} for name in run.config if name not in changed]
    with st.expander(f"{len(usual)} fields at their defaults"):
        show_table(pd.DataFrame(usual), alt="The other fields of the run's config, with their values.")


def changed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields whose value is not the default, and unknown fields, which have no default."""
    return {name: value for name, value in config.items() if name not in DEFAULTS or DEFAULTS[name] != value}


def _facts(run: WatchedRun) -> None:
    st.header("Machine and versions")
    facts = {name.replace("_", " ").capitalize(): value_text(run.info[name]) for name in _FACTS if name in run.info}
    versions = run.info.get("versions")
    if isinstance(versions, dict):
        facts |= {f"{name} version": value_text(version) for name, version in versions.items()}
    commit = facts.get("Git commit", "")
    facts |= {"Git commit": commit[:12]} if _COMMIT.fullmatch(commit) else {}
    show_words([{"Fact": name, "Value": value} for name, value in facts.items()], "Host, device, versions and hashes.")


def reproduce(run: WatchedRun) -> str:
    """Shell commands that train this run again; they include its config."""
    config = to_yaml(changed_fields(run.config))
    commit = run.info.get("git_commit")
    name = as_file_name(run.name)
    lines = [as_command(["git", "checkout", str(commit)])] if commit and _COMMIT.fullmatch(str(commit)) else []
    lines.append(as_here_document(config, f"{name}.yaml"))
    lines.append(as_command(["python", "-m", "altgrad", "train", f"{name}.yaml", "--out", f"reproduced/{name}"]))
    return "\n".join(lines)


def _checkpoints(run: WatchedRun) -> None:
    st.header("Checkpoints")
    try:
        found = (run.folder / "checkpoints").list()
    except OSError as error:
        st.caption(f"The checkpoints cannot be listed: {as_markdown(str(error))}")
        return
    if not found:
        st.caption("No checkpoint has been written.")
        return
    frame = pd.DataFrame([{"File": info.base_name, "Size (MB)": (info.size or 0) / 1e6} for info in found])
    size = {"Size (MB)": st.column_config.NumberColumn(format="%.2f")}
    show_table(frame, alt="Checkpoints of the run with their size.", column_config=size)
