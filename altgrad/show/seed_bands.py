"""Mean and spread over the seeds of each group, for a chart of curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altgrad.compare import Row, by_group
from altgrad.compare.parity.student_t import t_quantile
from altgrad.results import Run
from altgrad.results.reading.curves import Curve, buckets, smooth
from altgrad.show.drawn_curves import View, curve_in, in_window, position_of, x_at

Spread = Literal["interval", "range"]


@dataclass(frozen=True)
class Band:
    """Mean over the `n` seeds of a group, at the steps that all of them have measured, in a band from `low` to `high`.

    The band is the 95 % t interval of the mean, or reaches from the lowest to the highest seed.  Mean and band are NaN
    at a step where a seed is NaN or inf; the interval also for a single seed.  With `view.difference` the values are
    differences to the BF16 run of the seed, as in the lines of the chart.
    """

    row: Row
    n: int
    steps: NDArray[np.int64]
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def seed_bands(rows: Iterable[Row], runs: Mapping[str, Run], view: View, spread: Spread = "interval") -> list[Band]:
    """One band per group.  It ends where the first of its seeds ends, since a mean over survivors would mislead."""
    found = (_band(members, runs, view, spread) for members in by_group(rows).values())
    return [band for band in found if band is not None]


def _band(members: Sequence[Row], runs: Mapping[str, Run], view: View, spread: Spread) -> Band | None:
    measured = []
    for row in members:
        curve = curve_in(view, runs[row.run], None if row.baseline is None else runs.get(row.baseline))
        if curve is not None:
            measured.append((row, Curve(curve.steps, smooth(curve.values, view.half_life))))
    if not measured:
        return None
    common = reduce(np.intersect1d, (curve.steps for _, curve in measured))
    common = in_window(Curve(common, common.astype(np.float64)), view).steps
    if not len(common):
        return None
    values = _by_seed([(row.seed, curve.values[np.searchsorted(curve.steps, common)]) for row, curve in measured])
    with np.errstate(invalid="ignore"):
        mean, low, high = _spread(np.where(np.isfinite(values), values, np.nan), spread)
    kept = reduce(np.union1d, (buckets(common, edge, view.buckets).steps for edge in (mean, low, high)))
    at = np.searchsorted(common, kept)
    x = np.mean([x_at(kept, position_of(runs[row.run], view.axis)) for row, _ in measured], axis=0)
    return Band(members[0], len(values), kept, x, mean[at], low[at], high[at])


def _by_seed(values: Sequence[tuple[int, NDArray[np.float64]]]) -> NDArray[np.float64]:
    """(seeds, steps); several runs of one seed count as their mean, as in the gap of a comparison."""
    seeds = dict.fromkeys(seed for seed, _ in values)
    return np.stack([np.mean([own for seed, own in values if seed == one], axis=0) for one in seeds])


def _spread(values: NDArray[np.float64], spread: Spread) -> tuple[NDArray[np.float64], ...]:
    """Mean, low and high at each step of `values`, (seeds, steps)."""
    mean, n = values.mean(axis=0), len(values)
    if spread == "range":
        return mean, values.min(axis=0), values.max(axis=0)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t_quantile(n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half
