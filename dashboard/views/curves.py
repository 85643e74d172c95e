"""Curves: a metric of some runs over step, tokens or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from altgrad.compare import Row, by_group, loss_unit
from altgrad.metrics import METRICS, columns, described
from altgrad.results import read_events
from altgrad.results.reading.own_metrics import own_names
from altgrad.show.drawn_curves import AXES, Axis, Line, View, death, describe, line, non_finite_count, not_on_log
from altgrad.show.seed_bands import Band, Spread, seed_bands
from altgrad.text.foreign_text import as_label
from dashboard.data.drawn_tables import drawn_bands, drawn_values
from dashboard.data.sweep_frame import csv_of, group_name
from dashboard.figures.colours import FAINT
from dashboard.figures.curve_figures import bands_figure, curves_figure, y_title
from dashboard.figures.curve_marks import add_moments
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.widgets import choose_kept, choose_many, choose_named, choose_one, metric_label, show_table, switch

_LAYOUTS = {"overlay": "overlay", "multiples": "small multiples", "bands": "seed bands"}
_SPREADS = {"interval": "95 % t interval", "range": "lowest to highest seed"}
_NEVER_SMOOTHED = ("learning_rate", "tokens", "elapsed_seconds", "non_finite_gradients")
_SHARE_SMOOTHED = 1 / 50  # of a run, as half-life
_MOST_LINES = 100
_MANY_LINES = 20  # with more lines, each gets fewer buckets: the extremes stay, and the chart draws faster
_FEW_BUCKETS = 150
_MOST_WITH_EVENTS = 4


def show(context: PageContext) -> None:
    """The page."""
    st.title("Curves")
    rows = _chosen_rows(context)
    view, layout, log_x, log_y = _chosen_view(context)
    if not rows:
        st.info("No run matches the filters. Clear one of them.")
        return
    if len(rows) > _MOST_LINES:
        st.caption(f"The first {_MOST_LINES} of {len(rows)} runs by validation loss; filter to see the others.")
        rows = rows[:_MOST_LINES]
    view = replace(view, buckets=_FEW_BUCKETS if len(rows) > _MANY_LINES else view.buckets)
    lines = lines_of(context, rows, view)
    if not lines:
        reason = "or has no BF16 baseline of the same seed " if view.difference else ""
        st.info(f"{described(view.metric).label} was not measured {reason}in the chosen runs and window.")
        return
    bands: list[Band] | None = None
    if layout == "multiples":
        _multiples(lines, view, log_x, log_y)
    elif layout == "bands":
        bands = _bands(context, rows, view, lines, log_x, log_y)
    else:
        figure = curves_figure(lines, view, log_x, log_y, with_raw=len(lines) <= _MANY_LINES)
        if len(lines) <= _MOST_WITH_EVENTS:
            for one in lines:
                run = context.sweep.run(one.row.run)
                if run is not None:
                    add_moments(figure, one, read_events(run), one.row.collapse_step)
        else:
            st.caption(f"Events and verdicts are drawn for up to {_MOST_WITH_EVENTS} runs; choose fewer to see them.")
        _draw(figure, view, lines, "overlay")
        _say_non_finite(lines)
        _say_not_on_log(lines, log_y)
    _say_deaths(lines)
    _as_table(drawn_values(lines, view) if bands is None else drawn_bands(bands, view), view)


def _bands(
    context: PageContext, rows: Sequence[Row], view: View, lines: Sequence[Line], log_x: bool, log_y: bool
) -> list[Band]:
    spread: Spread = "range" if choose_one("Band", _SPREADS, "band") == "range" else "interval"
    bands = seed_bands(rows, {run.name: run for run in context.sweep.runs}, view, spread)
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
    _draw(bands_figure(bands, lines, view, log_x, log_y), view, lines, "bands", caption)
    _say_not_on_log(lines, log_y)
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


def _chosen_rows(context: PageContext) -> list[Row]:
    rows = context.rows
    columns_ = st.columns([1, 1, 2])
    with columns_[0]:
        formats = choose_many("Formats", sorted({row.format for row in rows}), "format", placeholder="all")
    with columns_[1]:
        chosen = _chosen_groups(rows)
    with columns_[2]:
        names = choose_many("Runs", sorted(row.run for row in rows), "run", placeholder="all")
    return [
        row
        for row in rows
        if (not formats or row.format in formats)
        and (not chosen or row.group in chosen)
        and (not names or row.run in names)
    ]


def _chosen_groups(rows: Sequence[Row]) -> set[str]:
    """`Row.group` of the chosen groups.

    The URL names a group by one of its runs.  Any run of the group is accepted, because its first run, which names it
    by default, may change while the sweep grows.
    """
    groups = {group_name(members): members for members in by_group(rows).values()}
    name_of = {row.run: name for name, members in groups.items() for row in members}
    named = st.query_params.get_all("group")
    if named != [name_of.get(name, name) for name in named]:
        st.query_params["group"] = [name_of.get(name, name) for name in named]
    labels = {name: row.group_label for name, (row, *_) in groups.items()}
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    return {groups[name][0].group for name in choose_named("Groups", ordered, "group", placeholder="all")}


def _chosen_view(context: PageContext) -> tuple[View, str, bool, bool]:
    label = partial(metric_label, loss_unit=loss_unit(context.rows))
    first, second, third, fourth = st.columns([2, 1, 2, 1])
    with first:
        own = dict.fromkeys(name for run in context.sweep.runs for name in own_names(run))
        metric = choose_kept("Metric", [*columns("step"), *own], "metric", "loss", format_func=label)
    with second:
        axis = choose_kept("Over", list(AXES), "over", "step", format_func=_axis_label)
    with third:
        layout = choose_one("Layout", _LAYOUTS, "layout")
    with fourth:
        usual = automatic_half_life(metric, context.rows)
        given = st.number_input(
            "Smoothing half-life",
            min_value=0,
            value=None,
            placeholder=f"automatic: {usual}",
            key="smoothing",
            bind="query-params",
            help="In measurements: so far back, one counts half as much in the moving average. 0 = none. Automatic is "
            "1/50 of the longest run for metrics of every step, and none for others.",
        )
        half_life = usual if given is None else given
    first, second, third, fourth, fifth = st.columns([1, 1, 1, 1, 2], vertical_alignment="bottom")
    with first:
        start = st.number_input("From step", value=None, min_value=0, step=1, key="from", bind="query-params")
    with second:
        stop = st.number_input("To step", value=None, min_value=0, step=1, key="to", bind="query-params")
    with third:
        log_x = switch("Log x", "log_x")
    with fourth:
        log_y = switch("Log y", "log_y")
    with fifth:
        to_baseline = switch("Difference to the BF16 run of the same seed", "difference")
    chosen: Axis = next(name for name in AXES if name == axis)
    view = View(metric, chosen, float(half_life), _int(start), _int(stop), difference=to_baseline)
    return view, layout, log_x, log_y


def automatic_half_life(metric: str, rows: Sequence[Row]) -> int:
    """The half-life of the smoothing, in measurements, unless the viewer chooses another one; 0: none."""
    if described(metric).every != "step" or metric in _NEVER_SMOOTHED:
        return 0
    longest = max((row.max_steps for row in rows), default=0)
    return int(float(f"{longest * _SHARE_SMOOTHED:.1g}"))


def _axis_label(name: str) -> str:
    return next(title for axis, title in AXES.items() if axis == name)


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _draw(figure: go.Figure, view: View, lines: Sequence[Line], key: str, caption: str = "") -> None:
    formats = ", ".join(sorted({one.row.format for one in lines}))
    alt = f"{y_title(view)} over {AXES[view.axis].lower()}, {formats}: {describe(lines)}"
    runs = f"{len(lines)} run{'s' if len(lines) > 1 else ''}"
    show_chart(figure, f"curves {key}", title=described(view.metric).label, n=runs, caption=caption, alt=alt)


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


def _multiples(lines: Sequence[Line], view: View, log_x: bool, log_y: bool) -> None:
    """Draw a chart per format, all on the same scale, with the lines of the other formats faint behind."""
    by_format: dict[str, list[Line]] = {}
    for one in lines:
        by_format.setdefault(one.row.format, []).append(one)
    whole, with_raw = curves_figure(lines, view, log_x, log_y), len(lines) <= _MANY_LINES
    cells: Sequence[Any] = []
    for position, (name, own) in enumerate(sorted(by_format.items())):
        figure = curves_figure(own, view, log_x, log_y, with_raw)
        others = [
            {
                "type": "scatter",
                "mode": "lines",
                "x": one.x_smoothed,
                "y": one.smoothed.values,
                "line": {"color": FAINT, "width": 1},
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": as_label(one.row.run),
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
        if not log_x:
            figure.update_xaxes(range=[min(one.x_raw.min() for one in lines), max(one.x_raw.max() for one in lines)])
        figure.add_traces(others)
        figure.data = figure.data[-len(others) :] + figure.data[: -len(others)] if others else figure.data
        if position % 2 == 0:
            cells = st.columns(2)
        with cells[position % 2]:
            _draw(figure, view, own, f"of {name}")
    _say_non_finite(lines)
    _say_not_on_log(lines, log_y)


def _as_table(frame: pd.DataFrame, view: View) -> None:
    """Show the drawn points as a table, for screen readers and for export."""
    if switch("Show the drawn values as a table", "values"):
        show_table(frame, alt="The drawn points: run or group, step and value.")
        st.download_button("Download as CSV", csv_of(frame), f"{view.metric}.csv", "text/csv", on_click="ignore")
