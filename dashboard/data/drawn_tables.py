"""The values that a chart of curves draws, as tables for the screen and the exported CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from altgrad.show.drawn_curves import Line, View
from altgrad.show.seed_bands import Band
from dashboard.data.sweep_frame import frame_of_columns


def drawn_values(lines: Sequence[Line], view: View) -> pd.DataFrame:
    """Run, step, x, value and smoothed value of every drawn point, including measured NaN values."""
    drawn: dict[str, Any] = {
        "run": [one.row.run for one in lines for _ in one.raw.steps],
        "step": np.concatenate([one.raw.steps for one in lines]),
    }
    if view.axis != "step":
        drawn[view.axis] = np.concatenate([one.x_raw for one in lines])
    drawn[view.metric] = np.concatenate([one.raw.values for one in lines])
    if view.half_life:
        drawn[f"{view.metric}_smoothed"] = np.concatenate([one.smoothed.values for one in lines])
    return frame_of_columns(drawn)


def drawn_bands(bands: Sequence[Band], view: View) -> pd.DataFrame:
    """Group, number of seeds, step, x, mean and the ends of the band at every drawn point."""
    if not bands:
        return pd.DataFrame()
    drawn: dict[str, Any] = {
        "group": [band.row.group_label for band in bands for _ in band.steps],
        "n": [band.n for band in bands for _ in band.steps],
        "step": np.concatenate([band.steps for band in bands]),
    }
    if view.axis != "step":
        drawn[view.axis] = np.concatenate([band.x for band in bands])
    for name in ("mean", "low", "high"):
        drawn[name] = np.concatenate([getattr(band, name) for band in bands])
    return frame_of_columns(drawn)
