"""What every page is given: the sweep, its comparison, and how to go to another page.

A view's state lives in the URL: widgets are bound to query parameters, so a link reproduces what is on the screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from altgrad.compare import Row, comparison
from altgrad.metrics import METRICS
from dashboard.sweep import Sweep, WatchedRun

_ROW_COLUMNS = ["validation_loss", "tokens_per_second", "stall_rate", "overflow_rate", "elapsed_seconds", "loss"]


@dataclass(frozen=True)
class Context:
    """The sweep on show and the pages by URL path."""

    sweep: Sweep
    pages: Mapping[str, Any]

    @property
    def rows(self) -> list[Row]:
        """The comparison of all runs; pages filter the rows, never the runs."""
        return self.sweep.derived("rows", lambda: _rows(self.sweep))

    @property
    def row(self) -> dict[str, Row]:
        """The comparison's rows by run name."""
        return self.sweep.derived("row by name", lambda: {row.run: row for row in self.rows})

    def open(self, page: str, **state: str | Sequence[str]) -> None:
        """Go to a page with some state; the sweep stays."""
        st.switch_page(self.pages[page], query_params={"sweep": self.sweep.folder.name, **state})

    def link(self, page: str, label: str, **state: str | Sequence[str]) -> None:
        """A link to a page with some state."""
        st.page_link(self.pages[page], label=label, query_params={"sweep": self.sweep.folder.name, **state})


def _rows(sweep: Sweep) -> list[Row]:
    sweep.prefetch(sweep.runs, "steps", _ROW_COLUMNS)
    sweep.prefetch(sweep.runs, "events", ["kind", "detail", "time"])
    return comparison(sweep.runs)


def label(row: Row) -> str:
    """What distinguishes a row's group in a legend: `E7M0 stored, clip`."""
    name = f"{row.format} {row.variant}".strip()
    return name if row.intervention == "none" else f"{name} · {row.intervention}"


def choose(title: str, options: Sequence[str], key: str, default: str | None = None, **more: Any) -> str:
    """One of some options, bound to the URL under `key`."""
    index = list(options).index(default) if default in options else 0
    return str(st.selectbox(title, options, index=index, key=key, bind="query-params", **more))


def choose_many(title: str, options: Sequence[str], key: str, default: Sequence[str] = (), **more: Any) -> list[str]:
    """Some of some options, bound to the URL under `key`."""
    kept = [option for option in default if option in options]
    return list(st.multiselect(title, options, default=kept, key=key, bind="query-params", **more))


def choose_one(title: str, options: Sequence[str], key: str, **more: Any) -> str:
    """One of a few options shown side by side, bound to the URL under `key`."""
    chosen = st.segmented_control(
        title, options, default=options[0], key=key, required=True, bind="query-params", **more
    )
    return str(chosen)


def switch(title: str, key: str, value: bool = False, **more: Any) -> bool:
    """On or off, bound to the URL under `key`."""
    return bool(st.toggle(title, value=value, key=key, bind="query-params", **more))


def choose_kept(title: str, options: Sequence[str], key: str, **more: Any) -> str:
    """One of some options that come and go, as runs do: the URL names the choice even where it is the first.

    A bound widget leaves its default out of the URL, and tomorrow's first option may be another one.
    """
    widget = f"{key} widget"
    wanted = st.query_params.get(key)
    if wanted in options and wanted != st.session_state.get(f"{key} shown"):  # the URL has changed, not the widget
        st.session_state[widget] = wanted
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = options[0]
    chosen = str(st.selectbox(title, options, key=widget, **more))
    st.session_state[f"{key} shown"] = st.query_params[key] = chosen
    return chosen


def choose_run(runs: Sequence[WatchedRun], key: str = "run") -> WatchedRun:
    """One of some runs, named in the URL."""
    names = [run.name for run in runs]
    return runs[names.index(choose_kept("Run", names, key))]


def metric_label(name: str) -> str:
    """Sentence-case label with unit."""
    return METRICS[name].axis
