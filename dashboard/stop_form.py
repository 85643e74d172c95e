"""Stopping a run or the sweep from a page: the request that `altgrad stop` writes, once the viewer has confirmed it."""

from __future__ import annotations

import streamlit as st

from altgrad.results.stop_request import REQUEST, request_stop
from altgrad.text.foreign_text import as_markdown
from dashboard.page_context import PageContext

_SWEEP = ""  # the option that is no run
_ASKED, _SAID = "stop asked", "stop said"


def asked_to_stop(context: PageContext) -> frozenset[str]:
    """Names of the running runs that were asked to stop, by a request in their folder or in the sweep's."""

    def look() -> frozenset[str]:
        running = [run for run in context.sweep.runs if run.status == "running"]
        if not running:
            return frozenset()
        if context.sweep.folder.has(REQUEST):
            return frozenset(run.name for run in running)
        return frozenset(run.name for run in running if run.folder.has(REQUEST))

    try:
        return context.sweep.derived("asked to stop", look)
    except OSError:  # storage does not answer, which the page says elsewhere
        return frozenset()


def stop_form(context: PageContext, is_over: bool) -> None:
    """A button that opens a choice of what to stop, and a second one that confirms; nothing if all runs have ended."""
    said = st.session_state.pop(_SAID, None)
    if said is not None:
        (st.success if said[0] else st.error)(as_markdown(said[1]))
    if is_over:
        return
    if context.no_writing:
        st.button("Stop a run or the sweep", disabled=True, help=f"Off: {context.no_writing}")
        return
    with st.popover("Stop a run or the sweep"):
        running = sorted(run.name for run in context.sweep.runs if run.status == "running")
        options = [_SWEEP, *running]
        if st.session_state.get("stop what") not in options:
            st.session_state["stop what"] = _SWEEP
        what = st.selectbox("What", options, format_func=lambda name: name or "the whole sweep", key="stop what")
        st.text_input("Reason (kept in the end record)", key="stop reason", max_chars=200)
        st.button("Stop…", on_click=_ask)
        if st.session_state.get(_ASKED) == what:
            _confirm(context, what)


def _ask() -> None:
    st.session_state[_ASKED] = st.session_state["stop what"]


def _take_back() -> None:
    st.session_state.pop(_ASKED, None)


def _confirm(context: PageContext, what: str) -> None:
    name = as_markdown(what or f"the whole sweep {context.sweep.folder.name}")
    consequence = (
        "It ends at its next report, for good: a later resume leaves it alone."
        if what
        else "Every run ends at its next report, and those that wait do not start, for good."
    )
    st.warning(f"Stop {name}? {consequence} What has been written is kept.")
    yes, no = st.columns(2)
    yes.button("Yes, stop", type="primary", on_click=_stop, args=(context, what))
    no.button("No", on_click=_take_back)


def _stop(context: PageContext, what: str) -> None:
    _take_back()
    run = context.sweep.run(what) if what else None
    folder = context.sweep.folder if run is None else run.folder
    if what and run is None:
        st.session_state[_SAID] = False, f"The run {what} is gone."
        return
    try:
        request_stop(folder, str(st.session_state.get("stop reason") or "").strip())
    except (OSError, ValueError) as error:  # it has ended meanwhile, or storage refuses
        st.session_state[_SAID] = False, f"The request could not be written: {error}"
        return
    context.sweep.look_again()
    st.session_state[_SAID] = True, f"Asked {what or 'the whole sweep'} to stop; it ends at the next report."
