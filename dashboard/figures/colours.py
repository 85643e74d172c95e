"""Colours of Plotly figures besides those of `altgrad.show.palette`."""

from __future__ import annotations

FAINT = "rgba(134, 134, 134, 0.25)"
SEQUENTIAL = "Cividis"  # readable with colour blindness and in grey


def with_alpha(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour as `rgba(...)`; any other colour is returned unchanged."""
    if not colour.startswith("#"):
        return colour
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"
