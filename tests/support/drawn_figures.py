"""The figures that a page sends to the browser, as numbers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streamlit.testing.v1 import AppTest


def figures(app: AppTest) -> list[dict[str, Any]]:
    """The Plotly figures of a page from top to bottom: `data`, `layout`."""
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def numbers(values: Any) -> NDArray[np.float64]:
    """An array of a figure; Plotly writes long ones as base64, and NaN as null."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).astype(np.float64)
    return np.array([np.nan if value is None else value for value in values], np.float64)
