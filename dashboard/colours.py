"""One colour per format everywhere, and a dash pattern per intervention.

Colours are Paul Tol's `vibrant` and `bright` schemes, which keep apart under the common colour blindnesses and on
both a white and a near-black page.  Baselines are grey: they are what the others are measured against.  Colour
never stands alone: interventions differ by dash, variants by marker, and every line is named on hover.
"""

from __future__ import annotations

from collections.abc import Mapping

from altgrad.formats import find_format
from altgrad.results import Status

BASELINES: Mapping[str, str] = {"BF16": "#868686", "FP16": "#a9a9a9", "FP32": "#6b6b6b"}
# by number of exponent bits, so that a format outside the registry has its colour too
_BY_EXPONENT = ("#0077bb", "#33bbee", "#009988", "#b5a21c", "#ee7733", "#cc3311", "#ee3377", "#aa4499")
_DASHES: Mapping[str, str] = {
    "none": "solid",
    "clip": "dash",
    "shift": "dot",
    "clip+shift": "dashdot",
    "stochastic": "longdash",
    "master": "longdashdot",
    "scaling": "8px 2px 2px 2px 2px 2px",
}
_MARKERS = ("circle-open", "square-open", "diamond-open", "triangle-up-open", "x-thin-open", "star-open")

STATUS_COLOURS: Mapping[Status, str] = {
    "completed": "#009988",
    "running": "#0077bb",
    "collapsed": "#cc3311",
    "failed": "#aa4499",
    "stopped": "#b5a21c",
    "killed": "#868686",
}
NEUTRAL = "rgba(134, 134, 134, 0.8)"
FAINT = "rgba(134, 134, 134, 0.25)"
ALARM = "#cc3311"
SEQUENTIAL = "Cividis"  # readable with every colour blindness and in grey
DIVERGING = "RdBu_r"


def format_colour(name: str) -> str:
    """The colour of a format, the same on every page and for every viewer."""
    if name in BASELINES:
        return BASELINES[name]
    try:
        return _BY_EXPONENT[find_format(name).exponent_bits % len(_BY_EXPONENT)]
    except ValueError:  # a format that only a newer version knows
        return NEUTRAL


def intervention_dash(name: str) -> str:
    """Plotly dash of an intervention; combinations that have none of their own are dotted and dashed."""
    return _DASHES.get(name, "4px 2px 1px 2px")


def variant_marker(variant: str, variants: list[str]) -> str | None:
    """Plotly marker of a variant among those on the chart; None for the default variant."""
    named = [name for name in variants if name]
    return _MARKERS[named.index(variant) % len(_MARKERS)] if variant in named else None


def with_alpha(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour as `rgba(...)`; colours given otherwise are returned as they are."""
    if not colour.startswith("#"):
        return colour
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"
