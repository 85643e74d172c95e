"""Controls and tables as every page uses them.

A view's state lives in the URL, so a link reproduces what is on the screen.  There it is named as the data names it,
never by a label.  Widgets whose options are such names are bound to query parameters by Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import streamlit as st

from altgrad.metrics import METRICS
from altgrad.text.foreign_text import as_code
from dashboard.data.watched_sweep import WatchedRun

_ROWS_WITHOUT_SCROLLING = 12
_SCROLLED_HEIGHT = 420
_SHORT = 34
_NOTHING = ""  # in the URL: nothing of several is chosen, and that is not the default


def choose(title: str, options: Sequence[str], key: str, default: str | None = None, **more: Any) -> str:
    """One of some options, bound to the URL under `key`."""
    index = list(options).index(default) if default is not None and default in options else 0
    return str(st.selectbox(title, options, index=index, key=key, bind="query-params", **more))


def choose_many(title: str, options: Sequence[str], key: str, default: Sequence[str] = (), **more: Any) -> list[str]:
    """Some of some options, bound to the URL under `key`."""
    kept = [option for option in default if option in options]
    return list(st.multiselect(title, options, default=kept, key=key, bind="query-params", **more))


def choose_one(title: str, options: Mapping[str, str], key: str, **more: Any) -> str:
    """One of a few options shown side by side; `options`: name in the URL -> label.  The first is the default."""
    default = next(iter(options))
    widget = _follow_url(key, options, [default], many=False)
    chosen = str(
        st.segmented_control(title, list(options), format_func=options.__getitem__, key=widget, required=True, **more)
    )
    _tell_url(key, [chosen], [default])
    return chosen


def choose_named(
    title: str, options: Mapping[str, str], key: str, default: Sequence[str] = (), **more: Any
) -> list[str]:
    """Some of some options; `options`: name in the URL -> label."""
    kept = [name for name in default if name in options]
    widget = _follow_url(key, options, kept, many=True)
    chosen = list(st.multiselect(title, list(options), format_func=options.__getitem__, key=widget, **more))
    _tell_url(key, chosen, kept)
    return chosen


def _follow_url(key: str, options: Mapping[str, str], default: list[str], many: bool) -> str:
    """Put what the URL names into the widget, whose key is returned; once, so that the viewer's choice stays.

    A widget bound to the URL by Streamlit would write its labels there, and a link would break with a better label.
    """
    widget, wanted = f"{key} widget", st.query_params.get_all(key)
    if wanted != st.session_state.get(f"{key} told") or widget not in st.session_state:
        known = [name for name in wanted if name in options]
        unknown = [name for name in wanted if name and name not in options]
        chosen = known if known or wanted == [_NOTHING] else default
        st.session_state[widget] = chosen if many else chosen[0]
        st.session_state[f"{key} unknown"] = ", ".join(unknown)
    elif many:
        st.session_state[widget] = [name for name in st.session_state[widget] if name in options]
    elif st.session_state[widget] not in options:
        st.session_state[widget] = default[0]
    if st.session_state.get(f"{key} unknown"):
        st.caption(_not_there(key, st.session_state[f"{key} unknown"]))
    return widget


def _not_there(key: str, value: str) -> str:
    return f"The link asks for {as_code(f'{key}={value}')}, which there is not (any more)."


def _tell_url(key: str, chosen: list[str], default: list[str]) -> None:
    """Name the choice in the URL, unless it is the default."""
    told = [] if chosen == default else chosen or [_NOTHING]
    if told != st.query_params.get_all(key):
        if told:
            st.query_params[key] = told
        else:
            st.query_params.pop(key, None)
    st.session_state[f"{key} told"] = told


def switch(title: str, key: str, value: bool = False, **more: Any) -> bool:
    """On or off, bound to the URL under `key`."""
    return bool(st.toggle(title, value=value, key=key, bind="query-params", **more))


def choose_kept(title: str, options: Sequence[str], key: str, default: str | None = None, **more: Any) -> str:
    """One of some options, always named in the URL, and kept when the viewer goes to another page and back.

    For options that come and go, as runs do (a bound widget leaves its default out of the URL, and tomorrow's
    first option may be another one), and for options shown under a label (a bound widget puts that into the URL).
    """
    widget, last = f"{key} widget", st.session_state.get(f"{key} shown")
    wanted = st.query_params.get(key)
    if wanted in options and wanted != last:  # the URL has changed, not the widget
        st.session_state[widget] = wanted
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = next((name for name in (last, default) if name in options), options[0])
    chosen = str(st.selectbox(title, options, key=widget, **more))
    if wanted is not None and wanted not in options:
        st.session_state[f"{key} unknown"] = wanted, chosen
    unknown, instead = st.session_state.get(f"{key} unknown", (None, None))
    if unknown is not None and chosen == instead:  # until the viewer chooses
        st.caption(_not_there(key, unknown))
    st.session_state[f"{key} shown"] = st.query_params[key] = chosen
    return chosen


def choose_run(runs: Sequence[WatchedRun], key: str = "run") -> WatchedRun:
    """One of some runs, named in the URL."""
    names = [run.name for run in runs]
    return runs[names.index(choose_kept("Run", names, key))]


def metric_label(name: str) -> str:
    """Sentence-case label with unit."""
    return METRICS[name].axis


def shortened(name: str) -> str:
    """A run's name where there is little room: its beginning says what it is, its end which seed."""
    return name if len(name) <= _SHORT else f"{name[: _SHORT - 10]}…{name[-9:]}"


def show_table(frame: pd.DataFrame, alt: str, **more: Any) -> Any:
    """A table as high as its rows, up to a dozen; a dash where there is no value."""
    height: int | Literal["content"] = "content" if len(frame) <= _ROWS_WITHOUT_SCROLLING else _SCROLLED_HEIGHT
    return st.dataframe(frame, hide_index=True, height=height, placeholder="–", alt=alt, **more)
