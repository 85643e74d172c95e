"""A Plotly figure drawn by matplotlib as SVG or PDF.

Plotly's own exporter needs a browser on the server; matplotlib writes both formats by itself.  Only what the figures of
this dashboard use is drawn.  Every point is drawn: matplotlib's simplification of paths is off.
"""

from __future__ import annotations

import io
import textwrap
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go

from dashboard.paper.figure_parts import Parts, colour, plain
from dashboard.paper.vector_marks import DRAWERS, POINT, Trace, dash_of

if TYPE_CHECKING:  # matplotlib takes half a second to import, and only an export needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Vector = Literal["svg", "pdf"]
_WIDTH, _PIXELS, _PIXELS_OF_STRIPS = 7.0, 120.0, 90.0  # inches; pixels of the page that become an inch
_SETTINGS: Any = {
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.fonttype": "none",
    "svg.hashsalt": "altgrad",
    "pdf.fonttype": 42,
    "path.simplify": False,
    "lines.scale_dashes": False,
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.4,
}
_LOCK = threading.Lock()  # matplotlib's settings are those of the process


@dataclass(frozen=True)
class Words:
    """Title, number of runs or seeds (`n = 3 seeds`), and caption of a chart; each may be empty."""

    title: str
    n: str = ""
    caption: str = ""

    @property
    def headline(self) -> str:
        """Title and number in one line."""
        return f"{self.title} ({self.n})" if self.n else self.title

    @property
    def whole(self) -> str:
        """Everything in one paragraph."""
        return f"{self.headline}. {self.caption}".strip()


def vector_figure(figure: go.Figure, words: Words, kind: Vector) -> bytes:
    """The figure with its title above and its caption below; the same bytes for the same figure."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    parts = Parts.of(figure)
    with _LOCK, mpl.rc_context(_SETTINGS):
        pixels = _PIXELS if len(parts.axes) == 1 else _PIXELS_OF_STRIPS
        height = max(float(parts.layout.get("height") or 400) / pixels, 1.6)
        drawn = Figure(figsize=(_WIDTH, height))
        axes = {pair: _axes(drawn, parts, pair) for pair in parts.axes or [("x", "y")]}
        for place, trace in enumerate(parts.traces):
            own = axes[trace.get("xaxis", "x"), trace.get("yaxis", "y")]
            DRAWERS[trace.get("type", "scatter")](own, Trace(parts, trace, f"series-{place}"))
        for (x, y), own in axes.items():
            _scale(own, parts, x, y)
        _shapes(axes, parts)
        _annotations(drawn, axes, parts)
        _say(drawn, parts, words)
        made = io.BytesIO()
        metadata: dict[str, Any] = {"Title": words.headline, "Date" if kind == "svg" else "CreationDate": None}
        drawn.savefig(made, format=kind, bbox_inches="tight", metadata=metadata)
    return made.getvalue()


def _axes(drawn: Figure, parts: Parts, pair: tuple[str, str]) -> Axes:
    left, right = parts.axis(pair[0]).get("domain") or (0.0, 1.0)
    bottom, top = parts.axis(pair[1]).get("domain") or (0.0, 1.0)
    return drawn.add_axes((left, bottom, right - left, top - bottom))


def _scale(axes: Axes, parts: Parts, x: str, y: str) -> None:
    """Titles, limits, ticks and scale of the axes."""
    from matplotlib.ticker import LogFormatter, NullLocator

    for name, own, letter in ((x, axes.xaxis, "x"), (y, axes.yaxis, "y")):
        layout, names = parts.axis(name), parts.categories(name)
        own.set_label_text(parts.title(name))
        limits = layout.get("range")
        if layout.get("type") == "log":
            axes.set(**{f"{letter}scale": "log"})
            own.set_major_formatter(LogFormatter())
            own.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # labels too, within a decade
            limits = None if limits is None else [10 ** float(end) for end in limits]
        if names is not None:
            own.set_ticks(range(len(names)), [plain(one) for one in names])
        elif labels := parts.labels(name):
            own.set_ticks(list(labels), list(labels.values()))
            own.set_minor_locator(NullLocator())
        if limits is not None and names is None:
            axes.set(**{f"{letter}lim": [float(end) for end in limits]})
        if layout.get("autorange") == "reversed":
            own.set_inverted(True)
        if str(layout.get("tickformat", "")).endswith("%"):
            own.set_major_formatter(lambda value, _: f"{value:.0%}")
    if parts.axis(x).get("side") == "top":
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
    if parts.axis(x).get("anchor") not in (None, y) and len(parts.axes) > 1:
        axes.tick_params(labelbottom=False)
        axes.set_xlabel("")


def _shapes(axes: Mapping[tuple[str, str], Axes], parts: Parts) -> None:
    """Lines and rectangles in data or paper coordinates; what spans the paper spans each of the axes."""
    from matplotlib.patches import Rectangle

    for shape in parts.layout.get("shapes") or ():
        refs = [str(shape.get(f"{key}ref", key)) for key in ("x", "y")]
        for (x, y), own in axes.items():
            if refs[0].split()[0] not in (x, "paper") or refs[1].split()[0] not in (y, "paper"):
                continue
            names = {"x": parts.categories(x), "y": parts.categories(y)}
            ends = {
                key: _place(shape[key], names[key[0]]) for key in ("x0", "x1", "y0", "y1") if shape.get(key) is not None
            }
            across = refs[0] == "paper" or refs[0].endswith("domain")
            along = refs[1] == "paper" or refs[1].endswith("domain")
            transform = (
                own.transAxes if across and along
                else own.get_yaxis_transform() if across
                else own.get_xaxis_transform() if along
                else own.transData
            )  # fmt: skip
            line = shape.get("line") or {}
            style = {"linewidth": line.get("width", 2) * POINT, "transform": transform, "zorder": 0.5}
            if shape.get("type") == "line":
                style |= {"color": colour(line.get("color")), "linestyle": dash_of(line.get("dash")), "label": "_"}
                ends_x, ends_y = [ends["x0"], ends["x1"]], [ends["y0"], ends["y1"]]
                own.plot(ends_x, ends_y, scalex=False, scaley=False, **style)
            else:
                edge = colour(line.get("color")) if line.get("width") and line.get("color") else "none"
                face = colour(shape.get("fillcolor")) if shape.get("fillcolor") else "none"
                size = ends["x1"] - ends["x0"], ends["y1"] - ends["y0"]
                corner = ends["x0"], ends["y0"]
                own.add_artist(
                    Rectangle(corner, *size, facecolor=face, edgecolor=edge, alpha=shape.get("opacity"), **style)
                )


def _place(value: Any, names: list[str] | None) -> float:
    return float(names.index(value)) if names is not None and isinstance(value, str) else float(value)


def _annotations(drawn: Figure, axes: Mapping[tuple[str, str], Axes], parts: Parts) -> None:
    first = next(iter(axes.values()))
    sides = {"auto": "center", "middle": "center", "bottom": "bottom", "top": "top", "left": "left", "right": "right"}
    for note in parts.layout.get("annotations") or ():
        refs = str(note.get("xref", "x")) == "paper", str(note.get("yref", "y")) == "paper"
        own = next((one for (_, y), one in axes.items() if y == note.get("yref")), first)
        transform = (
            drawn.transFigure if all(refs)
            else own.get_yaxis_transform() if refs[0]
            else own.get_xaxis_transform() if refs[1]
            else own.transData
        )  # fmt: skip
        drawn.text(float(note["x"]), float(note["y"]), plain(note.get("text", "")), transform=transform, size=7.5,
                   ha=sides.get(note.get("xanchor", "auto"), "center"),
                   va=sides.get(note.get("yanchor", "auto"), "center"))  # fmt: skip


def _say(drawn: Figure, parts: Parts, words: Words) -> None:
    """Legend and caption below the axes, title above: `bbox_inches="tight"` makes room for them."""
    inch = 1 / drawn.get_figheight()
    handles, labels = [], []
    for axes in drawn.axes:
        more = axes.get_legend_handles_labels()
        handles += more[0]
        labels += more[1]
    foot = -0.5 * inch
    if handles and parts.layout.get("showlegend") is not False:
        legend = drawn.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, foot), ncols=3, frameon=False,
                              fontsize=7, borderaxespad=0)  # fmt: skip
        drawn.draw_without_rendering()
        foot = float(legend.get_window_extent().transformed(drawn.transFigure.inverted()).y0) - 0.1 * inch
    top = 1 + (0.5 if parts.layout.get("xaxis", {}).get("side") == "top" else 0.15) * inch
    drawn.text(0, top, words.headline, ha="left", va="bottom", size=9, weight="bold")
    if words.caption:
        drawn.text(0, foot, textwrap.fill(words.caption, 120), ha="left", va="top", size=7)
