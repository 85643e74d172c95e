"""The parts of a Plotly figure as plain values, for whatever draws or writes the same figure without a browser."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.show.palette import PALETTE

_BREAK, _TAG = re.compile(r"<br\s*/?>"), re.compile(r"</?(?:b|i|sub|sup)>")
Paint = str | tuple[float, float, float, float]


@dataclass(frozen=True)
class Parts:
    """Traces, layout and the axes that a figure draws on; `axes`: (`x`, `y`), (`x`, `y2`) and so on, in order."""

    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]

    @classmethod
    def of(cls, figure: go.Figure) -> Parts:
        """The parts of a figure that are visible, with its arrays as NumPy arrays or lists."""
        content = figure.to_plotly_json()
        shown = [trace for trace in content["data"] if trace.get("visible", True) is True]
        return cls([_decoded(trace) for trace in shown], content["layout"])

    @property
    def axes(self) -> list[tuple[str, str]]:
        """Pairs of axes, each once."""
        return list(dict.fromkeys((trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in self.traces))

    def axis(self, name: str) -> Mapping[str, Any]:
        """The layout of an axis called `x`, `y2`, ..."""
        return self.layout.get(f"{name[0]}axis{name[1:]}", {})

    def title(self, name: str) -> str:
        """The title of an axis; empty if it has none."""
        title = self.axis(name).get("title", "")
        return plain(title.get("text", "") if isinstance(title, Mapping) else title)

    def categories(self, name: str) -> list[str] | None:
        """The names on an axis of names, in order of first appearance; None for an axis of numbers."""
        key, found = name[0], dict[str, None]()
        for trace in self.traces:
            values = trace.get(key)
            if trace.get(f"{key}axis", key) == name and values is not None:
                found |= {value: None for value in values if isinstance(value, str)}
        return list(found) or None

    def series(self, trace: Mapping[str, Any]) -> str:
        """The name of a trace in the data: its `meta`, else that of its legend entry or of its group's."""
        group = trace.get("legendgroup")
        named = (one.get("name") for one in self.traces if group and one.get("legendgroup") == group)
        return plain(trace.get("meta") or trace.get("name") or next(filter(None, named), ""))

    def labels(self, name: str) -> dict[float, str]:
        """Position -> text, for an axis whose ticks are given as text."""
        axis = self.axis(name)
        places, texts = axis.get("tickvals"), axis.get("ticktext")
        if places is None or texts is None:
            return {}
        return {float(place): plain(text) for place, text in zip(places, texts, strict=True)}


def _decoded(value: Any) -> Any:
    """A value with the arrays in it that Plotly has encoded, as they were."""
    if not isinstance(value, Mapping):
        return value
    if value.keys() >= {"dtype", "bdata"}:
        flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        return flat.reshape([int(size) for size in str(value.get("shape", len(flat))).split(",")])
    return {key: _decoded(part) for key, part in value.items()}


def marks_of(trace: Mapping[str, Any]) -> set[str]:
    """`lines`, `markers`, `text`: what a scatter trace draws."""
    return set(str(trace.get("mode") or "lines").split("+"))


def plain(text: Any) -> str:
    """A Plotly label as text: without its markup, in one line."""
    return html.unescape(_TAG.sub("", _BREAK.sub(" ", str(text)))).strip()


def each(value: Any, count: int) -> Iterator[Any]:
    """The value of each of `count` points, of one value for all of them or of one each."""
    if value is None or isinstance(value, str | int | float):
        return iter([value] * count)
    return iter(list(value))


def colour(value: Any) -> Paint:
    """A colour of CSS as one of matplotlib; grey for None."""
    if value is None:
        return PALETTE["BF16"]  # grey
    found = re.fullmatch(r"rgba?\(([^)]*)\)", str(value))
    if found is None:
        return str(value)
    red, green, blue, *alpha = (float(part) for part in found[1].split(","))
    return red / 255, green / 255, blue / 255, (alpha or [1.0])[0]
