"""`streamlit run dashboard [-- ROOT --read-only]`: selects a sweep, follows its folder, and shows one of the pages.

ROOT is a results folder, a single sweep folder, or a URI such as s3://bucket/results.  The default is the environment
variable ALTGRAD_RESULTS, or `results` if that is not set.  With `--read-only` nobody can stop or annotate runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st

from altgrad.results import list_sweeps
from altgrad.show.glossary import glossary, meaning
from altgrad.storage.folder import Folder, check_location
from altgrad.text.foreign_text import as_code, as_markdown
from dashboard.data.watched_sweep import WatchedSweep
from dashboard.page_context import PageContext, open_sweep
from dashboard.views import compare, curves, failures, formats, layers, overview, run, sweep
from dashboard.widgets import choose_kept, number_kept, switch

LOOK_SECONDS = 2.0
LOOK_SECONDS_AT_REST = 5.0  # while no run trains
READ_ONLY = "--read-only"
VIEWS: dict[str, tuple[str, Callable[[PageContext], None]]] = {
    "overview": ("Overview", overview.show),
    "sweep": ("Sweep", sweep.show),
    "curves": ("Curves", curves.show),
    "compare": ("Compare", compare.show),
    "failures": ("Failures", failures.show),
    "layers": ("Layers", layers.show),
    "formats": ("Formats", formats.show),
    "run": ("Run", run.show),
}


def main() -> None:
    """Draw the whole page; Streamlit calls this for each interaction."""
    st.set_page_config(page_title="altgrad", layout="wide")
    st.html(Path(__file__).parent / "page.css")
    locations = [word for word in sys.argv[1:] if word != READ_ONLY]
    location = locations[0] if locations else os.environ.get("ALTGRAD_RESULTS", "results")
    chosen = _choose_sweep(location)
    if chosen is None:
        return
    current = open_sweep(str(chosen))
    version = current.version or _look(current)
    paused = _paused(current)
    if not paused or current.wrote:
        version = _look(current)
    pages: dict[str, Any] = {}
    context = PageContext(current, pages, _margin(), _why_no_writing(chosen))
    for path, (title, show) in VIEWS.items():
        pages[path] = st.Page(partial(show, context), title=title, url_path=path, default=path == "overview")
    page = st.navigation(list(pages.values()))
    if not paused:
        trains = any(run.status == "running" for run in current.runs)
        (_follow if trains or not current.runs else _follow_at_rest)(current, version)
    _say_what_cannot_be_read(current)
    _look_up()
    if current.runs:
        annotations = current.annotations
        if annotations.hidden or annotations.damage:  # the sweep page reads the rows itself, with more columns
            for note in context.shown.notes:
                st.caption(as_markdown(note))
        page.run()
    else:
        st.title(page.title)
        st.info(
            f"No run has started in {as_markdown(str(chosen))} yet. This page follows the folder and shows the first "
            "run when it does."
        )


def _choose_sweep(location: str) -> Folder | None:
    """The sweep selected in the sidebar; None, with a message on the page, if there is no sweep."""
    try:
        check_location(location)
    except ValueError as error:
        st.error(f"The results root cannot be opened: {as_markdown(str(error))}")
        return None
    try:
        root = Folder.at(location)
        sweeps = [root] if root.has("sweep.json") else list_sweeps(root)
    except (OSError, ValueError, pa.ArrowException) as error:
        st.error(as_markdown(f"The results root {location} cannot be opened: {error}"))
        return None
    if not sweeps:
        st.title("No sweep yet")
        st.info(
            f"There is no sweep in {as_markdown(str(root))}. Start one with `altgrad sweep`, or open another "
            "folder with `altgrad dashboard FOLDER`."
        )
        _wait_for_first_sweep(root)
        return None
    names = [folder.name for folder in sweeps]
    with st.sidebar:
        name = choose_kept("Sweep", names, "sweep")
    return sweeps[names.index(name)]


def _margin() -> float | None:
    """The margin of the parity verdicts that the viewer has chosen for all pages; None: that of the sweep."""
    with st.sidebar:
        return number_kept(
            "Parity margin",
            "margin",
            placeholder="default",
            help=f"Of the parity verdicts: the {meaning('margin')}. By default that with which the sweep was started.",
        )


def _why_no_writing(sweep: Folder) -> str:
    """Why stop requests and annotations cannot be written, in a sentence; "" if they can, as far as one can tell."""
    if READ_ONLY in sys.argv[1:]:
        return f"The dashboard was started with {READ_ONLY}."
    if sweep.is_local and not os.access(sweep.path, os.W_OK):
        return "The folder of the sweep can only be read here."
    return ""


def _paused(current: WatchedSweep) -> bool:
    """Whether the viewer has paused the updates; there is a switch only while a run is under way."""
    if not any(run.status == "running" for run in current.runs):
        return False
    with st.sidebar:
        paused = switch("Pause live updates", "pause", help="Keep what is on the screen while runs go on.")
        if paused:
            st.caption("Paused: nothing new is read until you switch it off.")
    return paused


@st.fragment(run_every=LOOK_SECONDS)
def _follow(current: WatchedSweep, shown_version: int) -> None:
    _show_news(current, shown_version)


@st.fragment(run_every=LOOK_SECONDS_AT_REST)
def _follow_at_rest(current: WatchedSweep, shown_version: int) -> None:
    _show_news(current, shown_version)


def _show_news(current: WatchedSweep, shown_version: int) -> None:
    """Look for new results; draw the page again only if there are any."""
    if _look(current) != shown_version:
        st.rerun()


def _look(current: WatchedSweep) -> int:
    """Refresh the sweep and return its version; if storage does not answer, warn and keep the data read before."""
    try:
        return current.refresh()
    except OSError as error:
        st.sidebar.warning(as_markdown(f"{current.folder} does not answer: {error}. The page shows earlier data."))
        return current.version


@st.fragment(run_every=LOOK_SECONDS)
def _wait_for_first_sweep(root: Folder) -> None:
    try:
        found = bool(list_sweeps(root))
    except OSError:
        return
    if found:
        st.rerun()


def _say_what_cannot_be_read(current: WatchedSweep) -> None:
    damaged = {run.name: [f"{part}: {why}" for part, why in run.tables.broken_parts().items()] for run in current.runs}
    sentences = [f"{as_code(name)}: {as_markdown(reason)}" for name, reason in current.broken.items()]
    sentences += [
        f"{as_code(name)}: {len(parts)} damaged part{'s' if len(parts) > 1 else ''} left out "
        f"({as_markdown('; '.join(parts[:3]))}); "
        "the rows of the other parts are shown"
        for name, parts in damaged.items()
        if parts
    ]
    for one in current.runs:
        if lost := one.tables.missing_steps(one.begins_after):
            sentences.append(f"{as_code(one.name)}: no part has {'; '.join(lost[:3])}")
    if sentences:
        with st.sidebar.expander(f"{len(sentences)} not fully readable"):
            for sentence in sentences:
                st.caption(sentence)


def _look_up() -> None:
    """Let the viewer look up what a word on the page means."""
    meanings = glossary()
    with st.sidebar:
        word = st.selectbox(
            "What does it mean?", list(meanings), index=None, placeholder="a word on the page", key="looked up word"
        )
        if word is not None:
            st.caption(as_markdown(f"{word}: {meanings[word]}"))


if __name__ == "__main__":
    main()
