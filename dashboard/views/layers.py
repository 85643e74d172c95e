"""Layers: a heat map of layers by steps for each chosen metric, at one site."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from altgrad.metrics import METRICS, SITES
from altgrad.metrics import columns as metric_columns
from altgrad.text.foreign_text import as_markdown
from dashboard.figures.layer_heat_map import heat, heat_figure
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.widgets import choose_named, choose_one, choose_run

_FIRST = ["stall_rate", "overflow_rate", "underflow_rate", "gradient_sparsity"]


def show(context: PageContext) -> None:
    """The page."""
    st.title("Layers")
    run = choose_run(sorted(context.sweep.runs, key=lambda run: run.name))
    row = context.row[run.name]
    table = run.table("layers")
    if not table.num_rows:
        st.info(
            "This run has no per-layer measurements: they are written every `diagnostic_interval` steps "
            f"({as_markdown(str(run.config.get('diagnostic_interval', 'not set')))} here), and it has reached step "
            f"{row.step}."
        )
        return
    sites = set(table["site"].unique().to_pylist())
    site = choose_one("Site", {name: name for name in SITES if name in sites}, "site")
    measured = measured_metrics(table, site)
    first = [name for name in _FIRST if name in measured] or measured[:4]
    shown = choose_named("Metrics", {name: METRICS[name].axis_in(run.loss_unit) for name in measured}, "metrics", first)
    if not shown:
        st.info("Choose at least one metric.")
    cells = st.columns(2 if len(shown) > 1 else 1)
    for position, metric in enumerate(shown):
        data = heat(table, metric, site)
        with cells[position % len(cells)]:
            st.markdown(f"**{METRICS[metric].axis_in(run.loss_unit)}**", help=METRICS[metric].meaning)
            if data is None:
                st.caption("Not measured.")
                continue
            alt = f"{METRICS[metric].label} at the {site} of {len(data.layers)} layers over steps."
            show_chart(
                heat_figure(data, metric, row.collapse_step),
                f"heat {metric}",
                title=f"{METRICS[metric].axis_in(run.loss_unit)} of {run.name}, {site}",
                n="1 run",
                alt=alt,
            )
    if row.collapse_step is not None:
        st.caption(f"Dashed line: the verdict, {as_markdown(str(row.reason))}.")


def measured_metrics(table: pa.Table, site: str) -> list[str]:
    """The metrics of a layers table that were measured at a site, in the order of `METRICS`."""
    rows = table.filter(pc.equal(table["site"], site))
    return [name for name in metric_columns("layer") if rows[name].null_count < rows.num_rows]
