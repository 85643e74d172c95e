"""One colour per format in all pictures, and a dash pattern per intervention.

The colours were searched for: any two of them, and each of them and an alarm colour, are at least 10 apart by CIEDE2000
in normal vision, deuteranopia and protanopia, and each has a contrast of at least 3:1 to the white and the near-black
page; a test computes it.  No more than eleven colours fit there.  Other formats have the colour of the eight-bit format
with as many exponent bits, and a dash and a marker of their own.  Colour is never the only difference: interventions
differ by dash, variants by marker.  Dashes are lengths in pixels, which both SVG and Plotly accept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from altgrad.events import EventKind
from altgrad.formats import FORMATS, find_format

Marker = Literal["circle", "square", "diamond", "triangle-up", "x-thin", "star"]

NEUTRAL = "rgba(134, 134, 134, 0.8)"
ALARM, ALARM_ON_DARK = "#dd0000", "#ff8a6b"
_GREY = "#868686"
PALETTE: Mapping[str, str] = {
    "BF16": _GREY,
    "FP32": "#666666",
    "E0M7": "#0055ff",
    "E1M6": "#6688ff",  # its values are those of E0M7 times 4
    "E2M5": "#886688",
    "E3M4": "#337733",
    "E4M3": "#dd7711",
    "E5M2": "#cc0066",
    "E6M1": "#cc77bb",
    "E7M0": "#9944aa",
    "E2M1": "#bb7766",
}
_BY_EXPONENT = tuple(PALETTE[f"E{exponent}M{7 - exponent}"] for exponent in range(8))
_FORMAT_DASHES = ("1px 3px", "5px 2px", "7px 2px 1px 2px", "3px 1px 1px 1px 1px 1px")
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
    if name in PALETTE:
        return PALETTE[name]
    try:
        fmt = find_format(name)
    except ValueError:  # a format that only a newer version knows
        return NEUTRAL
    return PALETTE.get(fmt.name) or (_GREY if fmt.bits > 8 else _BY_EXPONENT[fmt.exponent_bits % len(_BY_EXPONENT)])


@cache
def _place(name: str) -> int:
    """0 for a format of the palette; else the format's place, from 1, among those that share its colour."""
    try:
        name = find_format(name).name
    except ValueError:
        return 1
    if name in PALETTE:
        return 0
    others = dict.fromkeys(fmt.name for fmt in FORMATS.values() if fmt.name not in PALETTE)
    sharing = [other for other in others if format_colour(other) == format_colour(name)]
    return 1 + (sharing.index(name) if name in sharing else len(sharing))


def event_colour(kind: EventKind, format_name: str) -> str:
    """The colour of an event's mark on the curve of a run in that format."""
    return format_colour(format_name) if kind.colour == "run" else NEUTRAL


def curve_dash(format_name: str, intervention: str = "none") -> str:
    """`solid`, or the lengths of dashes and gaps: of the intervention, else of a format outside the palette.

    All combinations of interventions that are not listed share one pattern.
    """
    place = _place(format_name)
    if intervention == "none" and place:
        return _FORMAT_DASHES[(place - 1) % len(_FORMAT_DASHES)]
    return _DASHES.get(intervention, "4px 2px 1px 2px")


def curve_marker(format_name: str, variant: str, variants: Sequence[str]) -> Marker | None:
    """The marker of a variant among the variants on the chart, or of a format outside the palette; else None."""
    named = [name for name in variants if name]
    if variant in named:
        return _MARKERS[named.index(variant) % len(_MARKERS)]
    place = _place(format_name)
    return _MARKERS[(place - 1) // len(_FORMAT_DASHES) % len(_MARKERS)] if place else None


def share_colour(share: float | None) -> str:
    """A colour from orange (0) over grey (0.5) to blue (1), grey for None; white text is readable on each of them."""
    if share is None:
        return "rgb(112, 112, 118)"
    low, high, at = (_NONE, _HALF, 2 * share) if share < 0.5 else (_HALF, _ALL, 2 * share - 1)
    return "rgb({}, {}, {})".format(*(round(a + (b - a) * at) for a, b in zip(low, high, strict=True)))
