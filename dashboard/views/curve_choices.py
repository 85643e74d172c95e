"""The controls of the curves page: which runs, which metric, over what, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import streamlit as st

from altgrad.compare import Row, by_group, loss_unit
from altgrad.metrics import columns, described
from altgrad.results.reading.own_metrics import own_names
from altgrad.show.drawn_curves import AXES, Axis, View
from dashboard.data.sweep_frame import group_name
from dashboard.page_context import PageContext
from dashboard.widgets import choose_kept, choose_many, choose_named, choose_one, metric_label, switch

_LAYOUTS = {"overlay": "overlay", "multiples": "small multiples", "bands": "seed bands"}
_NEVER_SMOOTHED = ("learning_rate", "tokens", "elapsed_seconds", "non_finite_gradients")
_SHARE_SMOOTHED = 1 / 150  # of a run, as half-life: noise falls to a third in 500 steps, and the mean lags by 4 steps


@dataclass(frozen=True)
class Chart:
    """A view, its layout (`overlay`, `multiples` or `bands`), and which axes are logarithmic."""

    view: View
    layout: str
    log_x: bool
    log_y: bool


def chosen_rows(context: PageContext) -> list[Row]:
    """Let the viewer choose formats, groups and runs; the rows of all that are not filtered out."""
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


def chosen_chart(context: PageContext) -> Chart:
    """Let the viewer choose what to draw and how."""
    label = partial(metric_label, loss_unit=loss_unit(context.rows))
    first, second, third = st.columns([2, 1, 1])
    with first:
        own = dict.fromkeys(name for run in context.sweep.runs for name in own_names(run))
        metric = choose_kept("Metric", [*columns("step"), *own], "metric", "loss", format_func=label)
    with second:
        axis = choose_kept("Over", list(AXES), "over", "step", format_func=_axis_label)
    with third:
        usual = automatic_half_life(metric, context.rows)
        given = st.number_input(
            "Half-life",
            min_value=0,
            value=None,
            placeholder=f"auto: {usual}",
            key="smoothing",
            bind="query-params",
            help="Of the smoothing, in measurements: one so far back counts half as much in the moving average. 0 = no "
            "smoothing. Auto is 1/150 of the longest run, at least 1, for metrics of every step, and 0 for others.",
        )
        half_life = usual if given is None else given
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        layout = choose_one("Layout", _LAYOUTS, "layout", width="content")
        start = _step("From step", "from")
        stop = _step("To step", "to")
        log_x = switch("Log x", "log_x", width="content")
        log_y = switch("Log y", "log_y", width="content")
        to_baseline = switch(
            "Difference to BF16", "difference", width="content", help="To the BF16 run of the same seed, at each step."
        )
    chosen: Axis = next(name for name in AXES if name == axis)
    view = View(metric, chosen, float(half_life), start, stop, difference=to_baseline)
    return Chart(view, layout, log_x, log_y)


def _step(label: str, key: str) -> int | None:
    given = st.number_input(label, value=None, min_value=0, step=1, key=key, bind="query-params", width=130)
    return None if given is None else int(given)


def automatic_half_life(metric: str, rows: Sequence[Row]) -> int:
    """The half-life of the smoothing, in measurements, unless the viewer chooses another one; 0: none."""
    if described(metric).every != "step" or metric in _NEVER_SMOOTHED:
        return 0
    longest = max((row.max_steps for row in rows), default=0)
    return max(1, int(float(f"{longest * _SHARE_SMOOTHED:.1g}")))


def _axis_label(name: str) -> str:
    return next(title for axis, title in AXES.items() if axis == name)
