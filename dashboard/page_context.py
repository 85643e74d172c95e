"""The context of every page: the sweep, its comparison, and links to the other pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import streamlit as st

from altgrad.compare import STEP_COLUMNS, Row, Shown, Terms, pair, planned_terms, read_row
from altgrad.storage.folder import Folder
from altgrad.text.foreign_text import as_markdown
from dashboard.data.watched_sweep import WatchedRun, WatchedSweep


@dataclass(frozen=True)
class PageContext:
    """The displayed sweep, and the pages by URL path.

    `margin`: of the parity verdicts, chosen by the viewer; None: that of the sweep.  `no_writing`: why the page may not
    write stop requests and annotations, in a sentence; "" if it may.
    """

    sweep: WatchedSweep
    pages: Mapping[str, Any]
    margin: float | None = None
    no_writing: str = ""

    @property
    def shown(self) -> Shown:
        """The comparison of all runs, and which of its rows are shown.  Only changed runs are read again."""
        annotations = self.sweep.annotations
        return self.sweep.derived(
            ("shown", self.margin), lambda: Shown(_rows(self.sweep, self.terms), annotations.hidden, annotations.damage)
        )

    @property
    def rows(self) -> list[Row]:
        """The rows of the comparison without hidden runs; pages filter these rows."""
        return self.shown.rows

    @property
    def row(self) -> dict[str, Row]:
        """Run name -> its row in the comparison, also of a hidden run."""
        return self.sweep.derived(("row by name", self.margin), lambda: {row.run: row for row in self.shown.all_rows})

    @property
    def terms(self) -> Terms:
        """The terms of the parity verdicts: the sweep's, with the viewer's margin if one is chosen."""
        return planned_terms(self.sweep.folder, self.margin)

    def query(self, **state: str | Sequence[str]) -> dict[str, str | Sequence[str]]:
        """The URL parameters of a page of the same sweep: what all pages share, and `state`."""
        margin = {} if self.margin is None else {"margin": f"{self.margin:g}"}
        return {"sweep": self.sweep.folder.name, **margin, **state}

    def address(self, page: str, **state: str | Sequence[str]) -> str:
        """A link to a page of the same sweep, for HTML."""
        return f"{page}?{urlencode(self.query(**state), doseq=True, quote_via=quote)}"

    def baseline_of(self, run: WatchedRun) -> WatchedRun | None:
        """The BF16 run that a run is compared with; None if there is none, or if it is the run itself."""
        name = self.row[run.name].baseline
        return None if name is None or name == run.name else self.sweep.run(name)

    @property
    def of_interest(self) -> str | None:
        """The run that a page shows first: the first that collapsed, else one that failed, else the worst of them.

        The worst has the largest gap to BF16.  None without runs.
        """
        return self.sweep.derived(
            ("of interest", self.margin), lambda: min(self.rows, key=_interest).run if self.rows else None
        )

    def open(self, page: str, **state: str | Sequence[str]) -> None:
        """Go to a page of the same sweep, with `state` in its URL."""
        st.switch_page(self.pages[page], query_params=self.query(**state))

    def link(self, page: str, label: str, **state: str | Sequence[str]) -> None:
        """Show a link to a page of the same sweep, with `state` in its URL."""
        st.page_link(self.pages[page], label=as_markdown(label), query_params=self.query(**state))


@st.cache_resource(max_entries=8)
def open_sweep(location: str) -> WatchedSweep:
    """The sweep at a location, whose tables the server keeps for all viewers."""
    return WatchedSweep(Folder.at(location))


def _interest(row: Row) -> tuple[int, float, str]:
    """Sort key: the most interesting run first."""
    if row.collapse_step is not None:
        return 0, row.collapse_step, row.run
    if row.status in ("failed", "killed"):
        return 1, row.step, row.run
    gap = row.final_gap
    return (3, 0.0, row.run) if gap is None or math.isnan(gap) else (2, -gap, row.run)


def _rows(sweep: WatchedSweep, terms: Terms) -> list[Row]:
    sweep.prefetch(sweep.runs, "steps", STEP_COLUMNS)
    sweep.prefetch(sweep.runs, "events", ["kind", "detail", "time"])
    unpaired = [sweep.remembered(run, "row", partial(read_row, run)) for run in sweep.runs]
    return pair(unpaired, terms)
