"""Rounding for display, without torch: the error of a format on a distribution or on a stored tensor.

Training rounds with `altgrad.quantization.kernel.round`.  This is a slow second implementation by table look-up, which
a test compares with that kernel value by value; only the explorer uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from altgrad.formats import NumberFormat

Floats = NDArray[np.float64]
_PER_BINADE = 64  # points that stand for a binade of a histogram
_QUANTILES = 4096  # points that stand for a distribution


def _gaussian(p: Floats) -> Floats:
    from scipy.special import ndtri  # imported late: it takes as long as opening a sweep, and only one page needs it

    return ndtri((1 + p) / 2)


def _laplace(p: Floats) -> Floats:
    return -np.log1p(-p) / np.sqrt(2)


def _student(p: Floats) -> Floats:
    from scipy.special import stdtrit

    return stdtrit(3, (1 + p) / 2) / np.sqrt(3)


# Quantile function of |x| for each distribution with unit variance.
DISTRIBUTIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "Gaussian": _gaussian,
    "Laplace": _laplace,
    "Student-t, 3 degrees": _student,
}


@dataclass(frozen=True)
class Weighted:
    """A distribution of magnitudes as points with weights; the weights and `zeros`, the share of zeros, sum to 1."""

    magnitudes: Floats
    weights: Floats
    zeros: float = 0.0


@lru_cache(maxsize=64)
def grid(fmt: NumberFormat) -> Floats:
    """All finite magnitudes in ascending order; position = index."""
    return np.array(fmt.magnitudes())


def indices(x: ArrayLike, fmt: NumberFormat) -> NDArray[np.int64]:
    """Grid index of each |x|, rounded to nearest with ties to the even code, and saturating; x must be finite."""
    values = grid(fmt)
    magnitude = np.abs(np.asarray(x, np.float64))
    above = np.searchsorted(values, magnitude, side="left").clip(1, len(values) - 1)
    below = above - 1
    to_below, to_above = magnitude - values[below], values[above] - magnitude
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.where(up, above, below)


def rounded(x: ArrayLike, fmt: NumberFormat) -> Floats:
    """x rounded to the nearest grid value, ties to the even code, saturating; NaN stays NaN."""
    x = np.asarray(x, np.float64)
    finite = np.where(np.isnan(x), 0.0, np.clip(x, -fmt.max, fmt.max))
    return np.where(np.isnan(x), np.nan, np.copysign(grid(fmt)[indices(finite, fmt)], x))


def power_of_two_scale(amax: float, fmt: NumberFormat) -> float:
    """The power of two s with amax / s in (max / 2, max]; 1 for an amax of 0 and for formats that are never scaled."""
    if not amax > 0 or not fmt.scaled:
        return 1.0
    fraction, exponent = np.frexp(amax)
    top_fraction, top_exponent = np.frexp(fmt.max)
    return float(2.0 ** (int(exponent) - int(top_exponent) + int(fraction > top_fraction)))


def from_distribution(name: str) -> Weighted:
    """Magnitudes of one of `DISTRIBUTIONS` with unit variance, at evenly spaced quantiles."""
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return Weighted(DISTRIBUTIONS[name](shares), np.full(_QUANTILES, 1 / _QUANTILES))


def from_histogram(first_exponent: int, exponents: Sequence[int], zeros: int) -> Weighted:
    """The distribution of a stored log2 histogram; values are taken as evenly spread within a binade."""
    counts = np.asarray(exponents, np.float64)
    total = counts.sum() + zeros
    within = 1 + (np.arange(_PER_BINADE) + 0.5) / _PER_BINADE
    binades = np.ldexp(1.0, first_exponent + np.arange(len(counts)))
    weights = np.repeat(counts / total / _PER_BINADE, _PER_BINADE)
    return Weighted(np.outer(binades, within).ravel(), weights, zeros / total)


@dataclass(frozen=True)
class Fit:
    """The effect of rounding on a distribution: SQNR in dB, shares of the non-zero values, code usage.

    `entropy`: entropy of the codes in bits, sign included (both signs are taken as equally likely); `bits`: storage
    width.  `used`: share of the grid's magnitudes that occur at all.
    """

    sqnr_db: float
    underflow: float
    overflow: float
    entropy: float
    bits: int
    used: float


def fit(data: Weighted, fmt: NumberFormat, amax: float | None = None, scaled: bool = True) -> Fit:
    """Round a distribution with the power-of-two scale for `amax` (default: its largest point), or unscaled."""
    occurring = data.magnitudes[data.weights > 0]
    top = amax if amax is not None else float(occurring.max(initial=0.0))
    scale = power_of_two_scale(top, fmt) if scaled else 1.0
    x, weights = data.magnitudes / scale, data.weights
    if fmt.bits > 16:
        return Fit(float("inf"), 0.0, 0.0, float("nan"), fmt.bits, float("nan"))
    index = indices(x, fmt)
    error = float(np.sum(weights * (x - grid(fmt)[index]) ** 2))
    power, non_zero = float(np.sum(weights * x**2)), float(weights.sum())
    usage = np.bincount(index, weights, minlength=fmt.max_index + 1)
    usage[0] += data.zeros
    shares = usage[usage > 0]
    signs = 1 - float(usage[0])  # a bit of sign for every value that is not zero
    return Fit(
        sqnr_db=float(10 * np.log10(power / error)) if error > 0 and power > 0 else float("inf"),
        underflow=float(weights[index == 0].sum()) / non_zero if non_zero else 0.0,
        overflow=float(weights[x > fmt.max].sum()) / non_zero if non_zero else 0.0,
        entropy=float(-np.sum(shares * np.log2(shares))) + signs,
        bits=fmt.bits,
        used=float(np.count_nonzero(usage)) / len(usage),
    )
