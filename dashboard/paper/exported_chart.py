"""The only place where a page draws a chart: the chart, its caption, and a row of buttons that export it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from altgrad.text.foreign_text import as_file_name, as_markdown
from dashboard.data.sweep_frame import csv_of
from dashboard.figures.curve_figures import CONFIG
from dashboard.paper.drawn_data import drawn_data, latex
from dashboard.paper.vector_figure import Words, vector_figure


def show_chart(
    figure: go.Figure, key: str, *, title: str, alt: str, n: str = "", caption: str = "", **more: Any
) -> Any:
    """Draw a chart and return the viewer's selection in it; `more`: arguments of `st.plotly_chart`.

    `title`, `n` (`15 runs`) and `caption`, which is shown below the chart, are plain text; they are part of the export.
    `alt`: the chart in words, for those who do not see it.
    """
    picked = st.plotly_chart(figure, key=key, alt=alt, **{"config": CONFIG, **more})
    if caption:
        st.caption(as_markdown(caption))
    _exports(figure, key, Words(title, f"n = {n}" if n else "", caption))
    return picked


def _exports(figure: go.Figure, key: str, words: Words) -> None:
    """Buttons for the picture and the drawn data; a file is made when its button is pressed."""
    name = as_file_name(words.title.lower())
    files: Mapping[str, tuple[Callable[[], str | bytes], str, str, str]] = {
        "SVG": (partial(vector_figure, figure, words, "svg"), "svg", "image/svg+xml", "the chart for an editor"),
        "PDF": (partial(vector_figure, figure, words, "pdf"), "pdf", "application/pdf", "the chart for a paper"),
        "CSV": (lambda: csv_of(drawn_data(figure)), "csv", "text/csv", "the drawn data"),
        "LaTeX": (lambda: latex(drawn_data(figure), words.whole), "tex", "text/x-tex", "the drawn data as booktabs"),
    }
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key=f"export of {key}"):
        for label, (made, ending, mime, said) in files.items():
            st.download_button(
                label,
                made,
                f"{name}.{ending}",
                mime,
                key=f"{key} as {ending}",
                help=f"{words.title}: {said}",
                on_click="ignore",
                type="tertiary",
            )
