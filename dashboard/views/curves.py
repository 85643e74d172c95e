"""Curves: a metric of some runs over step, tokens or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from altgrad.compare import Row
from altgrad.metrics import METRICS, described
from altgrad.results import read_events
from altgrad.show.drawn_curves import AXES, Line, View, death, describe, line, non_finite_count, not_on_log
from altgrad.show.seed_bands import Band, Spread, seed_bands
from altgrad.text.foreign_text import as_label, as_markdown
from dashboard.chart_state import ChartState, chart_state, keep_chart_state, undo_button
from dashboard.data.drawn_tables import drawn_bands, drawn_values
from dashboard.data.sweep_frame import csv_of
from dashboard.figures.colours import FAINT
from dashboard.figures.curve_figures import CONFIG, bands_figure, curves_figure, y_title
from dashboard.figures.curve_marks import add_moments, legend_names
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.views.curve_choices import Chart, chosen_chart, chosen_rows
from dashboard.widgets import choose_one, show_table, switch

_SPREADS = {"interval": "95 % t interval", "range": "lowest to highest seed"}
_MOST_LINES = 100
_MANY_LINES = 20  # with more lines, each gets fewer buckets: the extremes stay, and the chart draws faster
_FEW_BUCKETS = 150
_MOST_WITH_EVENTS = 4
_CHARTS = "curve-charts"
# The button "Reset axes" would return to the zoom of the URL, "Autoscale" gives it up.
_CONFIG = {**CONFIG, "modeBarButtonsToRemove": [*CONFIG["modeBarButtonsToRemove"], "resetScale2d"]}


def show(context: PageContext) -> None:
    """The page."""
    st.title("Curves")
    rows = chosen_rows(context)
    chart = chosen_chart(context)
    if not rows:
        st.info("No run matches the filters. Clear one of them.")
        return
    if len(rows) > _MOST_LINES:
        st.caption(f"The first {_MOST_LINES} of {len(rows)} runs by validation loss; filter to see the others.")
        rows = rows[:_MOST_LINES]
    view = replace(chart.view, buckets=_FEW_BUCKETS if len(rows) > _MANY_LINES else chart.view.buckets)
    chart = replace(chart, view=view)
    lines = lines_of(context, rows, view)
    if not lines:
        reason = "or has no BF16 baseline of the same seed " if view.difference else ""
        st.info(f"{described(view.metric).label} was not measured {reason}in the chosen runs and window.")
        return
    names = legend_names(lines)
    entries = {one.row.run: names[one.row.group] for one in lines}
    state = chart_state(view.axis, f"{view.metric}, difference: {view.difference}", entries)
    bands: list[Band] | None = None
    with st.container(key=_CHARTS):
        if chart.layout == "multiples":
            _multiples(lines, chart, state)
        elif chart.layout == "bands":
            bands = _bands(context, rows, lines, chart, state)
        else:
            _overlay(context, lines, chart, state)
    undo_button(state)
    metric = described(view.metric)
    st.caption(as_markdown(f"{metric.label}: {metric.meaning.partition(';')[0]}."))
    _say_deaths(lines)
    _say_not_on_log(lines, chart.log_y)
    _as_table(drawn_values(lines, view) if bands is None else drawn_bands(bands, view), view)
    keep_chart_state(_CHARTS)


def _overlay(context: PageContext, lines: Sequence[Line], chart: Chart, state: ChartState) -> None:
    figure = curves_figure(lines, chart.view, chart.log_x, chart.log_y, with_raw=len(lines) <= _MANY_LINES)
    if len(lines) <= _MOST_WITH_EVENTS:
        for one in lines:
            run = context.sweep.run(one.row.run)
            if run is not None:
                add_moments(figure, one, read_events(run), one.row.collapse_step)
    else:
        st.caption(f"Events and verdicts are drawn for up to {_MOST_WITH_EVENTS} runs; choose fewer to see them.")
    _draw(figure, chart, lines, "overlay", state)
    _say_non_finite(lines)


def _bands(
    context: PageContext, rows: Sequence[Row], lines: Sequence[Line], chart: Chart, state: ChartState
) -> list[Band]:
    spread: Spread = "range" if choose_one("Band", _SPREADS, "band") == "range" else "interval"
    bands = seed_bands(rows, {run.name: run for run in context.sweep.runs}, chart.view, spread)
    if not bands:
        st.info("The seeds of each group have no measured step in common in this window, so there is no mean to draw.")
        return bands
    what = "lowest to highest seed" if spread == "range" else "95 % t interval of the mean"
    single = [band.row.group_label for band in bands if band.n == 1]
    said = f" One seed has no interval: {', '.join(single)}." if single and spread == "interval" else ""
    caption = (
        f"Line: mean over seeds. Band: {what}. Both end where the first of the seeds ends, and have a gap where one of "
        f"them is NaN or inf.{said}"
    )
    _draw(bands_figure(bands, lines, chart.view, chart.log_x, chart.log_y), chart, lines, "bands", state, caption)
    return bands


def lines_of(context: PageContext, rows: Sequence[Row], view: View) -> list[Line]:
    """The lines of some rows; a run in which the metric was not measured has none."""
    runs = {run.name: run for run in context.sweep.runs}
    wanted = [view.metric] if view.axis == "step" else [view.metric, view.axis]
    known = [name for name in wanted if name in METRICS]
    context.sweep.prefetch([runs[row.run] for row in rows], "steps", known)
    found = []
    for row in rows:
        run = runs[row.run]
        baseline = runs.get(row.baseline) if view.difference and row.baseline is not None else None
        key = (view, None if baseline is None else (baseline.name, context.sweep.version))
        found.append(context.sweep.remembered(run, key, partial(line, row, run, view, baseline)))
    return [one for one in found if one is not None]


def _draw(
    figure: go.Figure, chart: Chart, lines: Sequence[Line], key: str, state: ChartState, caption: str = ""
) -> None:
    formats = ", ".join(sorted({one.row.format for one in lines}))
    alt = f"{y_title(chart.view)} over {AXES[chart.view.axis].lower()}, {formats}: {describe(lines)}"
    runs = f"{len(lines)} run{'s' if len(lines) > 1 else ''}"
    title = described(chart.view.metric).label
    state.put_on(figure)
    show_chart(figure, f"curves {key}", title=title, n=runs, caption=caption, alt=alt, config=_CONFIG)


def _say_non_finite(lines: Sequence[Line]) -> None:
    broken = non_finite_count(lines)
    if broken:
        runs = sum(bool(one.spans) for one in lines)
        st.caption(f"{broken} non-finite values in {runs} of the runs: shaded, with the last finite value marked.")


def _say_deaths(lines: Sequence[Line]) -> None:
    dead = sum(death(one) is not None for one in lines)
    if dead:
        st.caption(f"Cross: where a run collapsed, failed or was killed ({dead} of {len(lines)}).")


def _say_not_on_log(lines: Sequence[Line], log_y: bool) -> None:
    missing = not_on_log(lines) if log_y else 0
    if missing:
        st.caption(f"{missing} measurements are zero or negative, so the logarithmic axis cannot show them.")


def _multiples(lines: Sequence[Line], chart: Chart, state: ChartState) -> None:
    """Draw a chart per format, all on the same scale, with the lines of the other formats faint behind."""
    by_format: dict[str, list[Line]] = {}
    for one in lines:
        by_format.setdefault(one.row.format, []).append(one)
    how = (chart.view, chart.log_x, chart.log_y)
    whole, with_raw = curves_figure(lines, *how), len(lines) <= _MANY_LINES
    cells: Sequence[Any] = []
    for position, (name, own) in enumerate(sorted(by_format.items())):
        figure = curves_figure(own, *how, with_raw)
        others = [
            {
                "type": "scatter",
                "mode": "lines",
                "x": one.x_smoothed,
                "y": one.smoothed.values,
                "line": {"color": FAINT, "width": 1},
                "hoverinfo": "skip",
                "showlegend": False,
            }
            for one in lines
            if one.row.format != name
        ]
        figure.update_layout(
            height=320,
            title={"text": as_label(name), "x": 0.02},
            showlegend=len({one.row.group for one in own}) > 1,
            legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        )
        figure.update_yaxes(range=whole.layout.yaxis.range)
        if not chart.log_x:
            figure.update_xaxes(range=[min(one.x_raw.min() for one in lines), max(one.x_raw.max() for one in lines)])
        figure.add_traces(others)
        figure.data = figure.data[-len(others) :] + figure.data[: -len(others)] if others else figure.data
        if position % 2 == 0:
            cells = st.columns(2)
        with cells[position % 2]:
            _draw(figure, chart, own, f"of {name}", state)
    _say_non_finite(lines)


def _as_table(frame: pd.DataFrame, view: View) -> None:
    """Show the drawn points as a table, for screen readers and for export."""
    if switch("Show the drawn values as a table", "values"):
        show_table(frame, alt="The drawn points: run or group, step and value.")
        st.download_button("Download as CSV", csv_of(frame), f"{view.metric}.csv", "text/csv", on_click="ignore")
