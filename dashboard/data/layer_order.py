"""The order in which the layers of a run crossed a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Crossing:
    """The first measurement of a layer beyond a limit."""

    layer: str
    step: int
    value: float


def first_beyond(rows: pa.Table, metric: str, limit: float, above: bool) -> list[Crossing]:
    """The first crossing of each layer that has one, by step, at one step the farthest first.

    rows: of a layers table at one site, in order of step.  above: whether beyond means above the limit.  NaN is beyond
    any limit.
    """
    measured = rows.select(["step", "layer", metric]).drop_null()
    steps, values = measured["step"].to_numpy(), measured[metric].to_numpy()
    beyond = np.isnan(values) | (values > limit if above else values < limit)
    found: dict[str, Crossing] = {}
    layers = measured["layer"].to_pylist()
    for at in np.flatnonzero(beyond):
        found.setdefault(layers[at], Crossing(layers[at], int(steps[at]), float(values[at])))
    sign = -1 if above else 1
    return sorted(found.values(), key=lambda one: (one.step, not np.isnan(one.value), sign * one.value))
