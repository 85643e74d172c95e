"""Layers: heat maps of layers by steps at one site, of one run or of two on one scale, who was first, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from altgrad.compare import Row
from altgrad.metrics import METRICS, SITES
from altgrad.metrics import columns as metric_columns
from altgrad.report.thresholds import BOUNDS
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import number
from dashboard.data.layer_order import Crossing, first_beyond
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.layer_heat_map import Heat, heat, heat_figure, shared_scale
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.widgets import choose_kept, choose_named, choose_one, choose_run, show_table, show_words, slide_to_step

_FIRST = ["stall_rate", "overflow_rate", "underflow_rate", "gradient_sparsity"]
_ALWAYS = ("amax", "scale")  # in the table of numbers
_NO_SECOND = ""
_WAYS = {"above": "exceeded", "below": "fell below"}


@dataclass(frozen=True)
class _Side:
    """One of the runs on the page, with its layers at the chosen site."""

    run: WatchedRun
    row: Row
    table: pa.Table


@dataclass(frozen=True)
class _Scales:
    """What the maps of one metric share: the ends of the colours and, of two maps, those of the steps."""

    colours: tuple[float, float] | None
    steps: tuple[int, int] | None

    @classmethod
    def of(cls, maps: Sequence[Heat | None], metric: str, verdicts: Sequence[int | None]) -> _Scales:
        measured = [data for data in maps if data is not None]
        colours = shared_scale(measured, metric)
        if len(measured) < 2:
            return cls(colours, None)
        ends = [int(data.steps[-1]) for data in measured] + [step for step in verdicts if step is not None]
        apart = max(int(data.steps[-1] - data.steps[0]) // max(len(data.steps) - 1, 1) for data in measured) // 2
        return cls(colours, (min(int(data.steps[0]) for data in measured) - apart, max(ends) + apart))


def show(context: PageContext) -> None:
    """The page."""
    st.title("Layers")
    runs = sorted(context.sweep.runs, key=lambda run: run.name)
    left, right = st.columns(2)
    with left:
        run = choose_run(runs, default=context.of_interest)
    others = [other.name for other in runs if other is not run]
    with right:
        beside = choose_kept(
            "Beside it", [_NO_SECOND, *others], "beside", format_func=lambda name: name or "no second run"
        )
    row, table = context.row[run.name], run.table("layers")
    if not table.num_rows:
        st.info(
            "This run has no per-layer measurements: they are written every `diagnostic_interval` steps "
            f"({as_markdown(str(run.config.get('diagnostic_interval', 'not set')))} here), and it has reached step "
            f"{row.step}."
        )
        return
    sites = set(table["site"].unique().to_pylist())
    site = choose_one("Site", {name: name for name in SITES if name in sites}, "site")
    sides = [_Side(run, row, at_site(table, site))]
    second = context.sweep.run(beside)
    if second is not None:
        sides.append(_Side(second, context.row[beside], at_site(second.table("layers"), site)))
    measured = measured_metrics(sides[0].table)
    first = [name for name in _FIRST if name in measured] or measured[:4]
    shown = choose_named("Metrics", {name: METRICS[name].axis_in(run.loss_unit) for name in measured}, "metrics", first)
    if not shown:
        st.info("Choose at least one metric.")
        return
    _maps(sides, site, shown)
    _first_beyond(sides, measured, shown)
    _numbers(sides, [name for name in measured if name in _ALWAYS or name in shown])


def _maps(sides: Sequence[_Side], site: str, metrics: Sequence[str]) -> None:
    """The maps of each metric, two metrics or two runs in a row, and one line for those with a single value."""
    found = {metric: [heat(side.table, metric, site) for side in sides] for metric in metrics}
    constant = {metric: value for metric, maps in found.items() if (value := _single_value(maps)) is not None}
    drawn = [metric for metric in metrics if metric not in constant]
    alone = len(sides) == 1
    cells: Sequence[Any] = []
    for position, metric in enumerate(drawn):
        if not alone:
            _heading(sides[0], metric)
        if not alone or position % 2 == 0:
            cells = st.columns(1 if alone and len(drawn) == 1 else 2)
        scales = _Scales.of(found[metric], metric, [side.row.collapse_step for side in sides])
        for place, (side, data) in enumerate(zip(sides, found[metric], strict=True)):
            with cells[position % 2 if alone else place]:
                if alone:
                    _heading(side, metric)
                else:
                    st.caption(as_markdown(side.run.name))
                _map(side, data, metric, site, scales)
    if constant:
        said = ", ".join(f"{METRICS[name].label.lower()} {number(value)}" for name, value in constant.items())
        st.caption(as_markdown(f"The same at every layer and step, so not drawn: {said}."))
    for side in sides:
        if side.row.collapse_step is not None:
            st.caption(
                f"Dashed line: the verdict of {as_markdown(side.run.name)}, {as_markdown(str(side.row.reason))}."
            )


def _heading(side: _Side, metric: str) -> None:
    st.markdown(f"**{METRICS[metric].axis_in(side.run.loss_unit)}**", help=METRICS[metric].meaning)


def _map(side: _Side, data: Heat | None, metric: str, site: str, scales: _Scales) -> None:
    label = METRICS[metric].axis_in(side.run.loss_unit)
    if data is None:
        st.caption(f"Not measured at the {site} of this run.")
        return
    verdict = side.row.collapse_step
    show_chart(
        heat_figure(data, metric, verdict, scales.colours, scales.steps),
        f"heat {metric} {side.run.name}",
        title=f"{label} of {side.run.name}, {site}",
        n="1 run",
        alt=f"{METRICS[metric].label} at the {site} of {len(data.layers)} layers of {side.run.name} over steps.",
    )


def _single_value(maps: Sequence[Heat | None]) -> float | None:
    """The value that all cells of some maps share; None if they differ, or one is not finite or there is no map."""
    values = {data.constant if data is not None else None for data in maps}
    return values.pop() if len(values) == 1 else None


def _first_beyond(sides: Sequence[_Side], measured: Sequence[str], shown: Sequence[str]) -> None:
    """The layers in the order in which a metric crossed a limit that the viewer chooses."""
    st.header("First layer and step beyond a limit")
    columns = st.columns([3, 3, 2], vertical_alignment="bottom")
    usual = next((name for name in (*shown, *measured) if _is_crossed(sides[0].table, name)), shown[0])
    with columns[0]:
        labels = {name: METRICS[name].axis_in(sides[0].run.loss_unit) for name in measured}
        metric = choose_kept("Metric", list(measured), "crossing", usual, format_func=labels.__getitem__)
    bound = BOUNDS.get(metric)
    is_low_bad = METRICS[metric].better == "higher" if bound is None else not bound.above_is_bad
    with columns[1]:
        ways = ("below", "above") if is_low_bad else ("above", "below")  # the first one is the default
        way = choose_one("Way", {name: _WAYS[name] for name in ways}, "way", label_visibility="collapsed")
    with columns[2]:
        limit = st.number_input(
            "Limit",
            value=_usual_limit(metric, sides[0].table, is_low_bad),
            format="%g",
            key=f"limit_{metric}",
            bind="query-params",
            help=None if bound is None else f"At first where failure reports call it bad: {bound.reason}.",
        )
    for side in sides:
        crossings = first_beyond(side.table, metric, limit, way == "above")
        _crossings(side, crossings, f"{METRICS[metric].label.lower()} {_WAYS[way]} {number(limit)}")


def _crossings(side: _Side, crossings: Sequence[Crossing], what: str) -> None:
    layers = len(side.table["layer"].unique())
    name = as_markdown(side.run.name)
    if not crossings:
        st.caption(f"{name}: at no layer and step {as_markdown(what)} ({layers} layers).")
        return
    first = crossings[0]
    verdict = side.row.collapse_step
    ahead = (
        "" if verdict is None else f", {verdict - first.step} steps before the verdict" if first.step <= verdict else ""
    )
    st.markdown(
        f"{name}: {as_markdown(what)} first at **{as_markdown(first.layer)}**, step **{first.step}**{ahead}; at "
        f"{len(crossings)} of {layers} layers in all."
    )
    frame = pd.DataFrame([{"Step": one.step, "Layer": one.layer, "Value": one.value} for one in crossings])
    show_table(frame, alt=f"Layers of {side.run.name} in the order in which {what}: step, layer, value.")


def _numbers(sides: Sequence[_Side], metrics: Sequence[str]) -> None:
    """The chosen metrics of each layer at a step that the viewer chooses, with its amax and its scale."""
    st.header("Numbers of each layer")
    names = [*(name for name in _ALWAYS if name in metrics), *(name for name in metrics if name not in _ALWAYS)]
    steps = sorted({step for side in sides for step in side.table["step"].to_pylist()})
    step = int(slide_to_step([str(one) for one in steps]))
    for side in sides:
        records = side.table.filter(pc.equal(side.table["step"], step)).select(["layer", *names]).to_pylist()
        st.caption(as_markdown(f"{side.run.name} at step {step}"))
        if not records:
            st.caption("Not measured at this step.")
            continue
        heads = {name: METRICS[name].axis_in(side.run.loss_unit) for name in names}
        rows = [
            {"Layer": record["layer"], **{heads[name]: number(record[name], 4) for name in names}} for record in records
        ]
        show_words(rows, f"Layers of {side.run.name} at step {step}: what was measured.")


def _is_crossed(table: pa.Table, metric: str) -> bool:
    """Whether a layer crossed the limit of the failure report."""
    bound = BOUNDS.get(metric)
    return bound is not None and bool(first_beyond(table, metric, bound.limit, bound.above_is_bad))


def _usual_limit(metric: str, table: pa.Table, is_low_bad: bool) -> float:
    """The limit of the failure report, or the middle of what was measured."""
    if metric in BOUNDS:
        return float(BOUNDS[metric].limit)
    finite = table[metric].drop_null().to_numpy()
    return float(f"{(finite.min() + finite.max()) / 2:.2g}") if len(finite) else 0.0


def at_site(table: pa.Table, site: str) -> pa.Table:
    """The rows of a layers table at a site."""
    return table.filter(pc.equal(table["site"], site))


def measured_metrics(rows: pa.Table) -> list[str]:
    """The metrics that were measured in these rows of a layers table, in the order of `METRICS`."""
    return [name for name in metric_columns("layer") if rows[name].null_count < rows.num_rows]
