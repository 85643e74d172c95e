"""Compare: survival by format and intervention, loss against bits and learning rate, settings, and parity verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from altgrad.compare import (
    RATE_HEADS,
    SWEEPS_HEADS,
    Row,
    Shown,
    by_group,
    config_difference,
    difference_curve,
    group_difference,
    loss_unit,
    paired_runs,
    pairs_note,
    parity_lines,
    parity_note,
    rate_lines,
    rates_note,
    rescue_matrix,
    sweeps_lines,
    tasks_note,
)
from altgrad.compare.parity.parity_table import HEADS
from altgrad.metrics import METRICS
from altgrad.results import list_sweeps
from altgrad.results.reading.curves import Curve, measured
from altgrad.text.foreign_text import as_markdown
from dashboard.data.sweep_frame import group_name
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.difference_figure import difference_figure
from dashboard.figures.group_figures import learning_rate_figure, matrix_figure, pareto, pareto_figure, survival_figure
from dashboard.page_context import PageContext, open_sweep
from dashboard.paper.exported_chart import show_chart
from dashboard.widgets import choose_kept, choose_many, choose_one, show_texts, value_text

_PARTS = {
    "matrix": "Rescue matrix",
    "bits": "Bits against loss",
    "learning_rate": METRICS["learning_rate"].label,
    "survival": "Survival",
    "groups": "Two groups",
    "sweeps": "Two sweeps",
    "settings": "Settings",
    "parity": "Parity",
}


def show(context: PageContext) -> None:
    """The page."""
    st.title("Compare")
    part = choose_one("Comparison", _PARTS, "part", label_visibility="collapsed")
    rows = context.rows
    match part:
        case "matrix":
            _matrix(context, rows)
        case "bits":
            _pareto(rows)
        case "learning_rate":
            _learning_rate(context.shown)
        case "survival":
            _survival(context, rows)
        case "groups":
            _two_groups(context, rows)
        case "sweeps":
            _two_sweeps(context, rows)
        case "settings":
            _settings(context, rows)
        case "parity":
            _parity(rows)


def _matrix(context: PageContext, rows: Sequence[Row]) -> None:
    cells = rescue_matrix(rows)
    unit = f" in {loss_unit(rows)}" if loss_unit(rows) else ""
    picked: Any = show_chart(
        matrix_figure(cells),
        "matrix",
        title="Rescue matrix",
        n=f"{len(rows)} runs",
        caption=f"Survived of ended runs; gap to the BF16 run of the same seed{unit} with 95 % interval and its step; "
        "median collapse step. Hatched: fewer than three ended runs.",
        alt="Rescue matrix: formats by interventions, the share of runs that did not collapse.",
        on_select="rerun",
        selection_mode="points",
    )
    st.caption("To see the runs of a cell, click it or choose it here.")
    points = picked.selection.points if picked else []
    names = {" · ".join(part for part in key if part): key for key in sorted(cells)}
    chosen = st.selectbox("Runs of a cell", list(names), index=None, placeholder="choose a cell", key="cell")
    key = tuple(points[0]["customdata"].split("\t")) if points else names.get(chosen or "")
    if key is not None:
        fmt, treatment, intervention = key
        context.open("sweep", rows="run", format=fmt, variant=treatment or "default", intervention=intervention)


def _pareto(rows: Sequence[Row]) -> None:
    if not pareto(rows):
        st.info("No group has a gap to a BF16 run of the same seed.")
        return
    show_chart(
        pareto_figure(rows),
        "pareto",
        title="Gap to BF16 against bits",
        n=f"{len(rows)} runs",
        caption="Filled: no group with at most as many bits comes closer to BF16. A group with a collapse is never "
        "filled, and the other groups are judged without it. Bits are those of the run's format. "
        + (tasks_note(rows) or ""),
        alt="Mean gap to BF16 against bits per value, one point per group.",
    )


def _learning_rate(shown: Shown) -> None:
    rows = shown.rows
    if not any(row.validation_loss is not None for row in rows):
        st.info("No validation loss has been measured.")
        return
    rates = {row.learning_rate for row in rows}
    if lines := rate_lines(shown.all_rows, shown.hidden):
        show_texts(RATE_HEADS, [line.cells for line in lines], "Best and usable rates of each format, and its gaps")
        st.caption(rates_note(rows))
    if len(rates) == 1:
        said = f"All runs have the learning rate {rates.pop():.3g}, so this sweep cannot compare learning rates."
    else:
        said = (
            "Lines: mean over seeds, at the rates at which all runs completed. Dots: completed runs; rings: running "
            "ones; crosses: runs that ended early, at their last loss. Runs without a finite validation loss are left "
            "out."
        )
    show_chart(
        learning_rate_figure(rows),
        "learning rate",
        title="Final validation loss against learning rate",
        n=f"{len(rows)} runs",
        caption=said,
        alt="Final validation loss against learning rate, one line per format and intervention.",
    )


def _survival(context: PageContext, rows: Sequence[Row]) -> None:
    if not any(row.collapse_step is not None for row in rows):
        st.info(f"{context.shown.none_collapsed}: every survival curve would be a line at 100 %.")
        return
    show_chart(
        survival_figure(rows),
        "survival",
        title="Survival",
        n=f"{len(rows)} runs",
        caption="Kaplan-Meier estimate. Ticks: last steps of runs without a collapse. Groups without one are left out.",
        alt="Share of runs that have not collapsed, by step.",
    )


def _settings(context: PageContext, rows: Sequence[Row]) -> None:
    names = choose_many("Runs", sorted(row.run for row in rows), "runs", [row.run for row in rows[:2]])
    _config_differences(context, names)


def _config_differences(context: PageContext, names: Sequence[str]) -> None:
    runs = [run for name in names if (run := context.sweep.run(name)) is not None]
    if len(runs) < 2:
        st.info("Choose at least two runs.")
        return
    different = config_difference(runs)
    if not different:
        st.info("These runs have the same config.")
        return
    frame = pd.DataFrame(
        {run.name: [value_text(values.get(run.name)) for values in different.values()] for run in runs},
        index=list(different),
    )
    st.dataframe(frame, alt="Config fields in which the chosen runs differ: a row per field, a column per run.")
    st.caption(f"Fields that differ: {len(different)}. All others are the same.")


def _two_groups(context: PageContext, rows: Sequence[Row]) -> None:
    """Any two groups side by side: paired difference with its verdict, its course, and what differs."""
    named = {group_name(members): members for members in by_group(rows).values()}
    if len(named) < 2:
        st.info("There is one group only: two groups differ in more than the seed.")
        return
    names = sorted(named, key=lambda name: (any(row.is_baseline for row in named[name]), named[name][0].group_label))
    left, right = st.columns(2)
    with left:
        one = choose_kept("Group", names, "one", format_func=lambda name: named[name][0].group_label)
    with right:
        rest = [name for name in names if name != one]
        other = choose_kept("against", rest, "other", rest[-1], format_func=lambda name: named[name][0].group_label)
    found = group_difference(named[one], named[other], context.terms)
    st.markdown(as_markdown(found.sentence))
    matched, pairs = paired_runs(named[one], named[other]), []
    for row, against in matched:
        runs = context.sweep.run(row.run), context.sweep.run(against.run)
        if runs[0] is not None and runs[1] is not None:
            pairs.append((_validation(runs[0]), _validation(runs[1])))
    curve = difference_curve(pairs)
    if curve is None:
        st.info("At no step is the difference of the validation losses finite for the same seeds: there is no curve.")
    else:
        drawn = ["Band: 95 % t interval."] if curve.n > 1 else ["One seed has no interval."]
        drawn += [] if found.parity.margin is None else ["Shaded: the margin."]
        show_chart(
            difference_figure(curve, named[one][0], found),
            "difference",
            title=f"{found.one} against {found.other}",
            n=f"{curve.n} seed{'s' if curve.n > 1 else ''}",
            caption=f"{found.one} minus {found.other}, paired by seed; above 0 it is behind. {' '.join(drawn)} It is "
            "judged alone; the part Parity corrects for all groups of the sweep.",
            alt="Difference of the validation losses of the two groups by step, with its 95 % interval over seeds.",
        )
    first = matched[0] if matched else (named[one][0], named[other][0])
    _config_differences(context, [row.run for row in first])


def _two_sweeps(context: PageContext, rows: Sequence[Row]) -> None:
    """This sweep against another one of the same folder, group by group."""
    here = context.sweep.folder
    try:
        others = [folder for folder in list_sweeps(here.parent) if folder.name != here.name]
    except OSError as error:
        st.info(as_markdown(f"The sweeps beside {here.name} cannot be listed: {error}"))
        return
    if not others:
        st.info(f"There is no other sweep beside {as_markdown(here.name)}.")
        return
    names = [folder.name for folder in others]
    chosen = others[names.index(choose_kept("Sweep to compare with", names, "there"))]
    there = open_sweep(str(chosen))
    try:
        there.refresh()
    except OSError as error:
        st.warning(as_markdown(f"{chosen} does not answer: {error}"))
    theirs = replace(context, sweep=there).shown
    lines = sweeps_lines(rows, theirs.rows, context.terms)
    show_texts(SWEEPS_HEADS, [line.cells for line in lines], f"Groups of {here.name} beside those of {chosen.name}")
    st.caption(
        as_markdown(
            f"Here: {here.name}; there: {chosen.name}. Groups of the same label, their runs paired by seed; a "
            "difference above 0 is worse here. Each is judged alone."
        )
    )
    for note in (*theirs.notes, *(f"{name}: {reason}" for name, reason in there.broken.items())):
        st.caption(as_markdown(f"There: {note}"))


def _validation(run: WatchedRun) -> Curve:
    return measured(run.table("steps", ["validation_loss"]), "validation_loss")


def _parity(rows: Sequence[Row]) -> None:
    lines = parity_lines(rows)
    if not lines:
        st.info("There is nothing to compare with BF16.")
        return
    show_texts(HEADS, [line.cells for line in lines], "The gap of each group to BF16, and the verdict on it")
    st.caption(f"{parity_note(rows)} {pairs_note(rows)}")
