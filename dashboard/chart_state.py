"""Zoom and hidden legend entries of the charts of a page, kept in its URL.

A chart is drawn anew when its data change, and Plotly then forgets what the viewer did to it.  So a small script tells
Python of every zoom and every click on the legend (`scripts/chart_state.js`); Python writes them into the URL and draws
the next chart with them.  Ranges in the URL are in units of the data, also for logarithmic axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from altgrad.text.foreign_text import as_code
from dashboard.scripts import script

_RANGES = {"x": "zoom_x", "y": "zoom_y"}
_HIDDEN = "hide"
_KEY = "chart state"
_DRAG = "chart drag"

Range = tuple[float, float]


@dataclass(frozen=True)
class ChartState:
    """What the viewer has chosen on the charts of a page: ranges of the axes (None: the usual) and hidden entries.

    `hidden`: values of `legendgroup`.
    """

    x: Range | None = None
    y: Range | None = None
    hidden: frozenset[str] = frozenset()
    drag: str | None = None

    def put_on(self, figure: go.Figure) -> None:
        """Zoom the figure and hide its entries, as the viewer did."""
        for name, limits in (("xaxis", self.x), ("yaxis", self.y)):
            axis = figure.layout[name]
            if limits is None or (axis.type == "log" and limits[0] <= 0):
                continue
            axis.range = [math.log10(end) for end in limits] if axis.type == "log" else list(limits)
        for trace in figure.data if self.hidden else ():
            if trace.legendgroup in self.hidden:
                trace.visible = "legendonly"
        if self.drag is not None:
            figure.layout.dragmode = self.drag


def chart_state(x: str, y: str, names: Mapping[str, str]) -> ChartState:
    """The state in the URL.  A zoom is given up when what its axis shows has changed.

    x, y: what the axes show.  names: any run in the chart -> the `legendgroup` of its entry; other entries have names
    that begin with a dot.
    """
    for shown, (axis, parameter) in zip((x, y), _RANGES.items(), strict=True):
        before = st.session_state.get(f"{_KEY} {axis}")
        if before is not None and before != shown:
            st.query_params.pop(parameter, None)
        st.session_state[f"{_KEY} {axis}"] = shown
    hidden = {names.get(name, name) for name in st.query_params.get_all(_HIDDEN)}
    known = frozenset(name for name in hidden if name.startswith(".") or name in names)
    return ChartState(_range("zoom_x"), _range("zoom_y"), known, st.session_state.get(_DRAG))


def undo_button(state: ChartState) -> None:
    """A button that shows the charts as they are drawn at first; nothing if they are."""
    zoomed = state.x is not None or state.y is not None
    if zoomed or state.hidden:
        label = "Undo the zoom and show hidden entries" if zoomed and state.hidden else "Undo the zoom"
        st.button(label if zoomed else "Show hidden entries", on_click=_forget, key=f"{_KEY} undo")


def keep_chart_state(container: str) -> None:
    """Watch the charts in the container with that key."""
    _watcher()(key=_KEY, data={"within": container}, on_moved_change=_remember)


def _watcher() -> Any:
    return st.components.v2.component("altgrad_chart_state", js=script("chart_state"))


def _remember() -> None:
    moved: Mapping[str, Any] = st.session_state[_KEY].get("moved") or {}
    for axis, parameter in _RANGES.items():
        if axis in moved:
            _write(parameter, None if moved[axis] is None else ["~".join(f"{end:.5g}" for end in moved[axis])])
    if "hidden" in moved:
        shown = set(moved["shown"])
        elsewhere = [name for name in st.query_params.get_all(_HIDDEN) if name not in shown]
        _write(_HIDDEN, list(dict.fromkeys([*elsewhere, *moved["hidden"]])))
    if "drag" in moved:
        st.session_state[_DRAG] = moved["drag"]


def _forget() -> None:
    for parameter in (*_RANGES.values(), _HIDDEN):
        _write(parameter, None)


def _write(parameter: str, values: Sequence[str] | None) -> None:
    if values:
        st.query_params[parameter] = list(values)
    else:
        st.query_params.pop(parameter, None)


def _range(parameter: str) -> Range | None:
    """The range in the URL; None, with a caption if it cannot be understood."""
    text = st.query_params.get(parameter)
    if text is None:
        return None
    try:
        low, high = (float(end) for end in text.split("~"))
    except ValueError:
        low = high = math.nan
    if math.isfinite(low) and math.isfinite(high) and low < high:
        return low, high
    st.caption(f"The link asks for {as_code(f'{parameter}={text}')}, which is no range such as `100~300`.")
    return None
