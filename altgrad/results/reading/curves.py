"""One metric over steps, prepared for drawing and comparing.

Most plots lose two things that these functions keep.  A spike of a single step is lost by sampling and averaging; here
a long curve is thinned to the smallest and largest value of each bucket.  Steps at which the value was NaN or inf are
gaps in a line; here they are listed as spans.  A step without a measurement is not a point of the curve.
All functions are pure and work on numpy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray


class Curve(NamedTuple):
    """Measurements in order of step; NaN and inf are values like any other."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def finite(self) -> Curve:
        """The curve without its non-finite values."""
        keep = np.isfinite(self.values)
        return Curve(self.steps[keep], self.values[keep])


@dataclass(frozen=True)
class Span:
    """A series of `count` measurements that are all NaN or inf, at steps `first` to `last`.

    `finite_step` and `finite_value` are the last finite measurement before it; None if there was none.
    """

    first: int
    last: int
    count: int
    finite_step: int | None
    finite_value: float | None


def measured(table: pa.Table, metric: str) -> Curve:
    """The curve of a metric in a `steps` table, without the rows in which it is null (not measured)."""
    rows = table.select(["step", metric]).drop_null()
    return Curve(rows["step"].to_numpy().astype(np.int64), rows[metric].to_numpy().astype(np.float64))


def buckets(steps: ArrayLike, values: ArrayLike, n: int) -> Curve:
    """The curve thinned to `n` buckets of equal width in steps, with the extremes of every bucket.

    Each bucket keeps its smallest and largest finite value and its first non-finite one; the two ends of the curve are
    also kept.  The result has at most 3n + 2 points; a curve of at most 2n points is returned unchanged.
    Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n={n}: at least one bucket is needed")
    steps, values = np.asarray(steps, np.int64), np.asarray(values, np.float64)
    if len(steps) <= 2 * n:
        return Curve(steps, values)
    bucket = (steps - steps[0]) * n // (steps[-1] - steps[0] + 1)
    finite = np.isfinite(values)
    order = np.flatnonzero(finite)
    order = order[np.lexsort((values[order], bucket[order]))]
    sorted_bucket = bucket[order]
    smallest = order[np.searchsorted(sorted_bucket, np.unique(sorted_bucket), side="left")]
    largest = order[np.searchsorted(sorted_bucket, np.unique(sorted_bucket), side="right") - 1]
    broken = np.flatnonzero(~finite)
    first_broken = broken[np.unique(bucket[broken], return_index=True)[1]]
    keep = np.unique(np.concatenate([smallest, largest, first_broken, [0, len(steps) - 1]]))
    return Curve(steps[keep], values[keep])


def non_finite_spans(steps: ArrayLike, values: ArrayLike) -> list[Span]:
    """The spans of consecutive NaN or inf measurements, in order; their counts add up to the number of all of them."""
    steps, values = np.asarray(steps, np.int64), np.asarray(values, np.float64)
    broken = np.concatenate([[False], ~np.isfinite(values), [False]])
    edges = np.flatnonzero(broken[1:] != broken[:-1])
    spans = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        before = start > 0  # the measurement before a span is finite, otherwise it would be part of the span
        spans.append(
            Span(
                first=int(steps[start]),
                last=int(steps[stop - 1]),
                count=int(stop - start),
                finite_step=int(steps[start - 1]) if before else None,
                finite_value=float(values[start - 1]) if before else None,
            )
        )
    return spans


def smooth(values: ArrayLike, half_life: float) -> NDArray[np.float64]:
    """Exponential moving average in which the weight of a value halves every `half_life` measurements.

    The weights are normalised, so the first values are not biased towards zero.  Non-finite values are returned
    unchanged and are left out of the averages.  `half_life` 0 changes nothing.  Raises ValueError below 0.
    """
    if half_life < 0:
        raise ValueError(f"half_life={half_life}: must be >= 0 measurements")
    result = np.array(values, np.float64)
    finite = np.isfinite(result)
    if half_life == 0 or not finite.any():
        return result
    decay = 0.5 ** (1 / half_life)
    sums = np.fromiter(accumulate(result[finite].tolist(), lambda total, value: decay * total + value), np.float64)
    weights = (1 - decay ** np.arange(1, len(sums) + 1)) / (1 - decay)
    result[finite] = sums / weights
    return result


def difference(curve: Curve, baseline: Curve) -> Curve:
    """`curve` minus `baseline` at those steps of `curve` that lie within the steps of the baseline.

    Between two of its measurements the baseline is interpolated linearly; if one of them is not finite, the difference
    is not finite either.
    """
    if not len(baseline.steps):
        return Curve(curve.steps[:0], curve.values[:0])
    inside = (curve.steps >= baseline.steps[0]) & (curve.steps <= baseline.steps[-1])
    steps = curve.steps[inside]
    with np.errstate(invalid="ignore"):
        return Curve(steps, curve.values[inside] - np.interp(steps, baseline.steps, baseline.values))
