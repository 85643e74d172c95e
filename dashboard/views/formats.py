"""Formats: range and values of each format, its precision, and its rounding error on the tensors of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import streamlit as st

from altgrad.format_fit import DISTRIBUTIONS, Fit, Weighted, fit, from_distribution
from altgrad.formats import FORMATS, SPLITS, NumberFormat, find_format
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import ABSENT, binary, number
from dashboard.data.cast_fits import Histogram, ranking, rotates_weight
from dashboard.data.watched_sweep import WatchedRun
from dashboard.figures.format_figures import (
    codes,
    equivalences,
    facts,
    fits,
    grid_figure,
    sample_figure,
    sqnr_figure,
    ulp_figure,
)
from dashboard.figures.tensor_figures import ranking_figure, tensor_figure, tensor_scale
from dashboard.page_context import PageContext
from dashboard.paper.exported_chart import show_chart
from dashboard.widgets import choose, choose_many, choose_one, choose_run, show_table, show_words, slide_to_step, switch

_PARTS = {"grids": "Grids", "precision": "Precision", "codes": "Codes", "tensors": "This run's tensors"}


def show(context: PageContext) -> None:
    """The page."""
    st.title("Formats")
    part = choose_one("View", _PARTS, "view", label_visibility="collapsed")
    formats = _chosen_formats()
    if not formats:
        st.info("Choose at least one format.")
    elif part == "grids":
        _grids(formats)
    elif part == "precision":
        _precision(formats)
    elif part == "codes":
        _codes(formats)
    else:
        _tensors(context, formats)


def _chosen_formats() -> list[NumberFormat]:
    known = [name for name, fmt in FORMATS.items() if fmt.bits <= 16]
    names = choose_many(
        "Formats",
        known,
        "formats",
        [fmt.name for fmt in SPLITS],
        accept_new_options=True,
        help="Any E<e>M<m> with 1 to 15 bits besides the sign can be typed, such as E3M2 or E4M3b11.",
    )
    found = []
    for name in names:
        try:
            found.append(find_format(name))
        except ValueError as error:
            st.warning(as_markdown(str(error)))
    return found


def _grids(formats: Sequence[NumberFormat]) -> None:
    alt = f"Positive values of {', '.join(fmt.name for fmt in formats)} on a log2 axis."
    said = "Each tick is a value; for formats of more than 8 bits only the range is drawn."
    show_chart(grid_figure(formats), "grids", title="Values of the formats", caption=said, alt=alt)
    rows = [{name: ABSENT if value is None else str(value) for name, value in facts(fmt).items()} for fmt in formats]
    show_words(rows, alt="Range, precision and special codes of each format.")
    for sentence in equivalences({fmt.name: fmt for fmt in formats}):
        st.info(sentence)


def _precision(formats: Sequence[NumberFormat]) -> None:
    st.header("ULP over the range")
    alt = "Relative distance of neighbouring values."
    show_chart(ulp_figure(formats), "ulps", title="ULP over the range", alt=alt)
    st.header("Signal to rounding noise")
    scaled = switch("Scaled: largest value to the top of the format", "scaled", True)
    data = {name: from_distribution(name) for name in DISTRIBUTIONS}
    said = "The values have unit variance; the largest is the one that occurs once in 4096. Scales are powers of two."
    _fits(formats, data, scaled, said)


def _fits(formats: Sequence[NumberFormat], data: Mapping[str, Weighted], scaled: bool, said: str) -> None:
    results = fits(formats, data, scaled)
    alt = f"Signal to quantization noise ratio of {len(formats)} formats on {', '.join(data)}."
    show_chart(sqnr_figure(results), "sqnr", title="Signal to rounding noise", caption=said, alt=alt)
    rows = [_fit_row(name, fmt, one) for name, by_format in results.items() for fmt, one in by_format.items()]
    show_table(pd.DataFrame(rows), alt="SQNR, losses and code usage per format.")


def _fit_row(name: str, fmt: str, one: Fit) -> dict[str, Any]:
    return {
        "Values": name,
        "Format": fmt,
        "SQNR (dB)": number(one.sqnr_db),
        "Rounded to zero": f"{100 * one.underflow:.2f} %",
        "Overflow": f"{100 * one.overflow:.2f} %",
        "Entropy of the codes": f"{one.entropy:.2f} of {one.bits} bits",
        "Grid values used": f"{100 * one.used:.0f} %",
    }


def _codes(formats: Sequence[NumberFormat]) -> None:
    name = choose("Format", [fmt.name for fmt in formats], "code_format")
    fmt = _named(formats, name)
    exact = {name: st.column_config.NumberColumn(format="%.8g") for name in ("Value", "Distance to the next")}
    show_table(pd.DataFrame(codes(fmt)), alt=f"Codes of {name}.", column_config=exact)
    special = f"{fmt.reserved_codes} codes of each sign at the top are inf or NaN." if fmt.reserved_codes else ""
    st.caption(f"Only values from zero up are listed; the first bit of a code is the sign. {special}")


def _named(formats: Sequence[NumberFormat], name: str) -> NumberFormat:
    return next(fmt for fmt in formats if fmt.name == name)


def _tensors(context: PageContext, formats: Sequence[NumberFormat]) -> None:
    run = choose_run(sorted(context.sweep.runs, key=lambda run: run.name), default=context.of_interest)
    table = run.table("tensors").to_pylist()
    if not table:
        interval = as_markdown(str(run.config.get("diagnostic_interval", "not set")))
        st.info(
            f"This run has stored no tensors: they are written every `diagnostic_interval` steps ({interval} here), "
            f"and it has reached step {context.row[run.name].step}."
        )
        return
    cells = st.columns(3)
    with cells[0]:
        layer = choose("Layer", list(dict.fromkeys(row["layer"] for row in table)), "layer")
    with cells[1]:
        site = choose("Site", list(dict.fromkeys(row["site"] for row in table)), "site")
    with cells[2]:
        fmt = _named(formats, choose("In format", [fmt.name for fmt in formats], "in"))
    chosen = {str(row["step"]): row for row in table if row["layer"] == layer and row["site"] == site}
    if not chosen:
        st.info(as_markdown(f"No values of the {site} of {layer} were stored."))
        return
    left, right = st.columns([3, 2], vertical_alignment="center")
    with left:
        row = chosen[slide_to_step(list(chosen))]
    with right:
        scaled = switch("Scaled to the top of the format", "scaled", True)
    if row["non_finite"]:
        st.warning(f"{row['non_finite']} values are NaN or inf; the figures below are about the other values.")
    if not sum(row["exponents"]):
        st.info("The tensor has no finite value other than zero.")
        return
    name = f"{'gradient of the weight' if site == 'gradient' else site} of {layer} at step {row['step']}"
    tensor = Histogram(row["first_exponent"], tuple(row["exponents"]), row["zeros"])
    if site == "weight":
        tensor = tensor.with_amax(_amax(run, layer, row["step"]))
    _distribution(tensor, name, fmt, scaled)
    _ranking(tensor, site, name, formats, scaled)
    _sample(row, name, fmt, tensor_scale(tensor.values, fmt, scaled))


def _amax(run: WatchedRun, layer: str, step: int) -> float | None:
    """The largest magnitude of a layer's weight that was recorded at a step; None where that of another tensor was."""
    if rotates_weight(run.config, layer):
        return None
    rows = run.table("layers", ["amax"])
    near = pc.and_(pc.equal(rows["step"], step), pc.equal(rows["layer"], layer))
    found = rows.filter(pc.and_(near, pc.equal(rows["site"], "weight")))["amax"].drop_null().to_pylist()
    return float(found[0]) if found else None


def _distribution(tensor: Histogram, name: str, fmt: NumberFormat, scaled: bool) -> None:
    found = fit(tensor.values, fmt, tensor.amax, scaled)
    st.header("Distribution and rounding error")
    show_chart(
        tensor_figure(tensor.values, fmt, scaled),
        "distribution",
        title=f"{name[:1].upper()}{name[1:]} in {fmt.name}",
        n=f"{tensor.size:,} values",
        caption=f"SQNR {number(found.sqnr_db, 3)} dB; {found.underflow:.2%} of the non-zero values become zero, "
        f"{found.overflow:.2%} overflow. Shaded: where they would. Noise: the squared rounding error. From the stored "
        "histogram; between two powers of two, the density of the values is assumed to follow a power of the value.",
        alt=f"Histogram of the {name} over powers of two, with the values of {fmt.name} and the rounding error.",
    )


def _ranking(tensor: Histogram, site: str, name: str, formats: Sequence[NumberFormat], scaled: bool) -> None:
    places = ranking(tensor, site, formats, scaled)
    st.header("Which format and which recipe fit this tensor")
    note = "Recipes: the cast of the weight in fprop."
    if site == "gradient":
        note = "Recipes round the gradient of the output, not this of the weight: their cast in dgrad is applied to it."
    alone = "with one scale per tensor" if scaled else "unscaled"
    show_chart(
        ranking_figure(places),
        "ranking",
        title=f"SQNR on the {name}",
        n=f"{tensor.size:,} values",
        caption=f"Signal to rounding noise, the higher the better. Formats: {alone}. {note} Hatched: recipes; those "
        "that round it alike share a bar. Values of a block are taken as independent of each other, rotated ones as "
        "Gaussian, and the matrix as square where each row has a scale.",
        alt=f"Formats and recipes ranked by SQNR on the {name}: {places[0].label} first, {places[-1].label} last.",
    )
    with st.expander("The ranking as a table"):
        rows = [
            {
                "Format or recipes": place.label,
                "Cast": str(place.cast),
                "SQNR (dB)": number(place.fit.sqnr_db),
                "Rounded to zero": f"{place.fit.underflow:.2%}",
                "Overflow": f"{place.fit.overflow:.2%}",
            }
            for place in places
        ]
        show_table(pd.DataFrame(rows), alt="SQNR and losses of each format and cast on this tensor.")


def _sample(row: Mapping[str, Any], name: str, fmt: NumberFormat, scale: float) -> None:
    st.header("Single values")
    sample = np.array(row["sample"] or [], np.float64)
    if not np.isfinite(sample).any():
        st.info("No finite value was sampled.")
        return
    show_chart(
        sample_figure(sample, fmt, scale),
        "sample",
        title=f"Values of the {name} in {fmt.name}",
        n=f"{len(sample)} sampled values",
        caption=f"Always the same positions of the tensor, in order of size; scale {binary(scale)}.",
        alt=f"{len(sample)} sampled values as trained and as {fmt.name} would hold them.",
    )
