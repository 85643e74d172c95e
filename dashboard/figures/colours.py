"""What only Plotly's figures need beside the colours of `altgrad.show.palette`."""

from __future__ import annotations

FAINT = "rgba(134, 134, 134, 0.25)"
SEQUENTIAL = "Cividis"  # readable with every colour blindness and in grey


def with_alpha(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour as `rgba(...)`; colours given otherwise are returned as they are."""
    if not colour.startswith("#"):
        return colour
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"
