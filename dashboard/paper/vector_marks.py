"""The traces of a Plotly figure drawn by matplotlib: lines, fills, marks, bars and heat maps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dashboard.paper.figure_parts import Parts, colour, each, marks_of, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINT = 0.75  # points in a pixel
_LETTERS = 110  # letters of a bar's text that fit across the figure
_MARKERS: Mapping[str, str] = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "x": "X",
    "x-thin": "x",
    "star": "*",
    "line-ns": "|",
}
_DASHES: Mapping[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


@dataclass(frozen=True)
class Trace:
    """A trace of a figure; `gid`: the id of its part of an SVG."""

    parts: Parts
    trace: Mapping[str, Any]
    gid: str

    def get(self, *path: str) -> Any:
        """The value at a path of keys; None if there is none."""
        found: Any = self.trace
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def positions(self, key: Literal["x", "y"]) -> np.ndarray:
        """The positions of the points; names have those of their place on the axis."""
        names = self.parts.categories(self.trace.get(f"{key}axis", key))
        values = [] if self.trace.get(key) is None else list(self.trace[key])
        if names is not None:
            values = [names.index(value) if isinstance(value, str) else value for value in values]
        return np.array([np.nan if value is None else value for value in values], np.float64)

    @property
    def label(self) -> str:
        """The entry in the legend; matplotlib leaves out what begins with an underscore."""
        hidden = self.trace.get("showlegend") is False or not self.trace.get("name")
        return "_" if hidden else plain(self.trace["name"])


def _scatter(axes: Axes, one: Trace) -> None:
    x, y, marks = one.positions("x"), one.positions("y"), marks_of(one.trace)
    opacity = one.get("opacity")
    if one.get("fill") == "toself":
        axes.fill(x, y, color=colour(one.get("fillcolor")), linewidth=0, gid=one.gid, label=one.label)
        return
    if one.get("fill") in ("tonexty", "tozeroy"):
        below = _before(one) if one.get("fill") == "tonexty" else None
        low = np.zeros_like(y) if below is None else below
        axes.fill_between(x, low, y, color=colour(one.get("fillcolor")), linewidth=0, label=one.label, gid=one.gid)
    stroke = one.get("line") or {}
    if "lines" in marks and stroke.get("width", 2) > 0:
        axes.plot(
            x,
            y,
            color=colour(stroke.get("color") or one.get("marker", "color")),
            linewidth=stroke.get("width", 2) * POINT,
            linestyle=dash_of(stroke.get("dash")),
            drawstyle="steps-post" if stroke.get("shape") == "hv" else "default",
            alpha=opacity,
            label=one.label if not one.get("fill") else "_",
            gid=one.gid,
        )
    if "markers" in marks:
        _markers(axes, one, x, y, labelled="lines" not in marks)
    if "text" in marks:
        for place, text in enumerate(each(one.get("text"), len(x))):
            if text:
                axes.annotate(
                    plain(text), (x[place], y[place]), (5, 0), textcoords="offset points", va="center", size=7
                )


def _before(one: Trace) -> np.ndarray | None:
    """The heights of the trace before this one, up to which `tonexty` fills."""
    place = int(one.gid.rpartition("-")[2]) - 1
    return None if place < 0 else Trace(one.parts, one.parts.traces[place], "").positions("y")


def _markers(axes: Axes, one: Trace, x: np.ndarray, y: np.ndarray, labelled: bool) -> None:
    count = len(x)
    symbols = [str(symbol or "circle") for symbol in each(one.get("marker", "symbol"), count)]
    colours = [colour(value or one.get("line", "color")) for value in each(one.get("marker", "color"), count)]
    sizes = [float(6 if size is None else size) * POINT for size in each(one.get("marker", "size"), count)]
    label = one.label if labelled else "_"
    for position, symbol in enumerate(dict.fromkeys(symbols)):
        at = [place for place in range(count) if symbols[place] == symbol and sizes[place] > 0]
        shape = _MARKERS.get(symbol.removesuffix("-open"), "o")
        own = [colours[place] for place in at]
        is_line = shape in ("x", "|")
        axes.scatter(
            x[at],
            y[at],
            s=[sizes[place] ** 2 for place in at],
            marker=shape,
            facecolors=own if is_line else "none" if symbol.endswith("-open") else own,
            edgecolors=None if is_line else own,
            linewidths=0.9,
            clip_on=one.get("cliponaxis") is not False,
            label=label if position == 0 else "_",
            gid=f"{one.gid}-markers",
            zorder=3,
        )


def _bar(axes: Axes, one: Trace) -> None:
    x, y = one.positions("x"), one.positions("y")
    bars = [trace for trace in one.parts.traces if trace.get("type") == "bar"]
    place = next(place for place, trace in enumerate(bars) if trace is one.trace)
    is_grouped = len(bars) > 1 and one.parts.layout.get("barmode", "group") == "group"
    width = one.get("width") or 0.8 / (len(bars) if is_grouped else 1)
    shift = (place - (len(bars) - 1) / 2) * width if is_grouped else 0.0
    base = np.array(list(each(one.get("base"), len(x))), dtype=object)
    bottom = np.array([0.0 if value is None else float(value) for value in base])
    fills = [colour(value) for value in each(one.get("marker", "color"), len(x))]
    lies = one.get("orientation") == "h"
    if lies:
        x, y = y, x
        drawn = axes.barh(x + shift, y, width, left=bottom, color=fills, label=one.label)
    else:
        drawn = axes.bar(x + shift, y, width, bottom=bottom, color=fills, label=one.label)
    hatches = list(each(one.get("marker", "pattern", "shape"), len(x)))
    texts = list(each(one.get("text"), len(x)))
    inside = one.get("textposition") == "inside"
    for position, patch in enumerate(drawn):
        patch.set_gid(f"{one.gid}-{position}")
        if hatches[position]:
            patch.set_hatch("//")
            patch.set_edgecolor((0, 0, 0, 0.35))
        height = bottom[position] + (y[position] / 2 if inside else y[position])
        if texts[position] and np.isfinite(height):
            across = len(set(x.tolist())) if inside else 1
            lines = "\n".join(
                textwrap.fill(plain(line), max(_LETTERS // across, 8)) for line in str(texts[position]).split("<br>")
            )
            ink = colour(one.get("insidetextfont", "color")) if inside else "black"
            at, offset = (x[position] + shift, height), (0, 0 if inside else 2)
            sides = ("center", "center" if inside else "bottom")
            if lies:
                at, offset, sides = at[::-1], offset[::-1], ("left", "center")
            axes.annotate(lines, at, offset, textcoords="offset points", ha=sides[0], va=sides[1], color=ink, size=6.5)


def _heatmap(axes: Axes, one: Trace) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Colormap, LinearSegmentedColormap

    scale = one.get("colorscale")
    chosen: Colormap
    if scale is None or isinstance(scale, str):
        known = {name.lower(): name for name in colormaps}
        chosen = colormaps[known.get(str(scale).lower(), "cividis")]
    else:
        chosen = LinearSegmentedColormap.from_list("own", [(float(at), colour(value)) for at, value in scale])
    cells = np.asarray(one.get("z"), np.float64)
    grid = axes.pcolormesh(one.positions("x"), one.positions("y"), cells, cmap=chosen, vmin=one.get("zmin"),
                           vmax=one.get("zmax"), shading="nearest", gid=one.gid)  # fmt: skip
    if one.get("showscale") is not False:
        title = one.get("colorbar", "title")
        said = plain(title.get("text", "") if isinstance(title, Mapping) else title or "")
        axes.figure.colorbar(grid, cax=axes.inset_axes((1.02, 0, 0.02, 1)), label=said)


def dash_of(dash: str | None) -> Any:
    """A Plotly dash as the line style of matplotlib; its lengths are pixels."""
    if dash is None or dash in _DASHES:
        return _DASHES[dash or "solid"]
    return 0, [float(length.removesuffix("px")) * POINT for length in dash.replace(",", " ").split()]


DRAWERS: Mapping[str, Callable[[Axes, Trace], None]] = {"scatter": _scatter, "bar": _bar, "heatmap": _heatmap}
