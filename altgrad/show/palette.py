"""One colour per format in all pictures, and a dash pattern per intervention.

The colours are from Paul Tol's `vibrant` and `bright` schemes, which stay distinct under the common kinds of colour
blindness, on a white and on a near-black page.  Baselines, to which the others are compared, are grey.  Colour is never
the only difference: interventions differ by dash, variants by marker.  Dashes are lengths in pixels, which both SVG and
Plotly accept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from altgrad.events import EventKind
from altgrad.formats import find_format

Marker = Literal["circle", "square", "diamond", "triangle-up", "x-thin", "star"]

BASELINES: Mapping[str, str] = {"BF16": "#868686", "FP16": "#a9a9a9", "FP32": "#6b6b6b"}
NEUTRAL = "rgba(134, 134, 134, 0.8)"
ALARM = "#cc3311"
# by number of exponent bits, so that a format outside the registry has a colour too
_BY_EXPONENT = ("#0077bb", "#33bbee", "#009988", "#b5a21c", "#ee7733", "#cc3311", "#ee3377", "#aa4499")
_DASHES: Mapping[str, str] = {
    "none": "solid",
    "clip": "9px 4px",
    "shift": "2px 3px",
    "clip+shift": "9px 3px 2px 3px",
    "stochastic": "16px 4px",
    "master": "16px 3px 2px 3px",
    "scaling": "8px 2px 2px 2px 2px 2px",
}
_MARKERS: Sequence[Marker] = ("circle", "square", "diamond", "triangle-up", "x-thin", "star")
_NONE, _HALF, _ALL = (179, 88, 6), (112, 112, 118), (33, 102, 172)


def format_colour(name: str) -> str:
    """The colour of a format, the same on every page; grey for an unknown format."""
    if name in BASELINES:
        return BASELINES[name]
    try:
        return _BY_EXPONENT[find_format(name).exponent_bits % len(_BY_EXPONENT)]
    except ValueError:  # a format that only a newer version knows
        return NEUTRAL


def event_colour(kind: EventKind, format_name: str) -> str:
    """The colour of an event's mark on the curve of a run in that format."""
    return format_colour(format_name) if kind.colour == "run" else NEUTRAL


def intervention_dash(name: str) -> str:
    """`solid`, or the lengths of dashes and gaps; all combinations that are not listed share one pattern."""
    return _DASHES.get(name, "4px 2px 1px 2px")


def variant_marker(variant: str, variants: Sequence[str]) -> Marker | None:
    """The marker of a variant among the variants on the chart; None for the default variant."""
    named = [name for name in variants if name]
    return _MARKERS[named.index(variant) % len(_MARKERS)] if variant in named else None


def share_colour(share: float | None) -> str:
    """A colour from orange (0) over grey (0.5) to blue (1), grey for None; white text is readable on each of them."""
    if share is None:
        return "rgb(112, 112, 118)"
    low, high, at = (_NONE, _HALF, 2 * share) if share < 0.5 else (_HALF, _ALL, 2 * share - 1)
    return "rgb({}, {}, {})".format(*(round(a + (b - a) * at) for a, b in zip(low, high, strict=True)))
