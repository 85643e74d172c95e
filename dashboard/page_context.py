"""The context of every page: the sweep, its comparison, and links to the other pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import streamlit as st

from altgrad.compare import STEP_COLUMNS, Row, pair, planned_terms, read_row
from altgrad.text.foreign_text import as_markdown
from dashboard.data.watched_sweep import WatchedSweep


@dataclass(frozen=True)
class PageContext:
    """The displayed sweep, and the pages by URL path."""

    sweep: WatchedSweep
    pages: Mapping[str, Any]

    @property
    def rows(self) -> list[Row]:
        """The rows of the comparison of all runs; pages filter these rows.  Only changed runs are read again."""
        return self.sweep.derived("rows", lambda: _rows(self.sweep))

    @property
    def row(self) -> dict[str, Row]:
        """Run name -> its row in the comparison."""
        return self.sweep.derived("row by name", lambda: {row.run: row for row in self.rows})

    def open(self, page: str, **state: str | Sequence[str]) -> None:
        """Go to a page of the same sweep, with `state` in its URL."""
        st.switch_page(self.pages[page], query_params={"sweep": self.sweep.folder.name, **state})

    def link(self, page: str, label: str, **state: str | Sequence[str]) -> None:
        """Show a link to a page of the same sweep, with `state` in its URL."""
        st.page_link(
            self.pages[page], label=as_markdown(label), query_params={"sweep": self.sweep.folder.name, **state}
        )


def _rows(sweep: WatchedSweep) -> list[Row]:
    sweep.prefetch(sweep.runs, "steps", STEP_COLUMNS)
    sweep.prefetch(sweep.runs, "events", ["kind", "detail", "time"])
    unpaired = [sweep.remembered(run, "row", partial(read_row, run)) for run in sweep.runs]
    return pair(unpaired, planned_terms(sweep.folder))
