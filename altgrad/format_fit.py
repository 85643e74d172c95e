"""Measures how well a format fits a distribution or a stored tensor (SQNR), by rounding in NumPy, without torch.

Training rounds with `altgrad.quantization.kernel.round`, in float32 and on any device.  This is the only other
implementation of rounding: slow, in float64, to nearest only, for the explorer and other uses without training.  A test
compares the two bit by bit for every registered format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from altgrad.formats import NumberFormat

Floats = NDArray[np.float64]
PER_BINADE = 101  # points that stand for a binade: odd, so that none of a format's spacings meets them in step
_STEEPEST = 12.0  # doublings of the counts from one binade to the next; steeper ones are an edge
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
    """Grid index of each |x| rounded to nearest, ties to the even code, saturating; x finite."""
    magnitude = np.minimum(_nearest(np.abs(np.asarray(x, np.float64)), fmt), fmt.max)
    return np.searchsorted(grid(fmt), magnitude)


def rounded(x: ArrayLike, fmt: NumberFormat) -> Floats:
    """x rounded to the nearest grid value, ties to the even code; NaN stays NaN.

    A value beyond the largest finite one (below zero beyond `lowest`: -128 for INT8) becomes that value or infinity,
    by the `overflow` of the format.  Zero keeps its sign if the format has a negative zero.
    """
    x = np.asarray(x, np.float64)
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
    nearest = np.where(np.isfinite(x), _nearest(magnitude, fmt), np.abs(x))
    largest = np.where(np.signbit(x), -fmt.lowest, fmt.max)
    beyond = np.inf if fmt.overflow == "inf" else largest
    signed = np.copysign(np.where(nearest > largest, beyond, nearest), x)
    return signed if fmt.has_negative_zero else signed + 0.0  # -0.0 + 0.0 is 0.0


def _nearest(magnitude: Floats, fmt: NumberFormat) -> Floats:
    """Finite magnitudes rounded as if the format had no largest value.

    With M = 0, 1.5 x 2^e lies halfway between 2^e and 2^(e+1); the neighbour with the even exponent field is taken.
    """
    exponent = np.full(magnitude.shape, fmt.min_exponent)
    if fmt.exponent_bits:
        exponent = np.maximum(np.frexp(magnitude)[1] - 1, fmt.min_exponent)
    step = np.ldexp(1.0, exponent - fmt.mantissa_bits)
    steps = magnitude / step
    nearest = np.rint(steps)  # ties to the even multiple, which has the even code
    if fmt.mantissa_bits == 0 and fmt.exponent_bits:
        field_below = exponent - fmt.min_exponent + 1
        nearest = np.where((steps == 1.5) & (field_below % 2 == 0), 1.0, nearest)
    return nearest * step


def power_of_two_scale(amax: float, fmt: NumberFormat) -> float:
    """The power of two s with amax / s in (max / 2, max]; 1 for an amax of 0 and for formats that are never scaled.

    As in training it is from 2^-126 to 2^126, and so small that the largest scaled value is a float32.
    """
    if not amax > 0 or not fmt.scaled:
        return 1.0
    fraction, exponent = np.frexp(amax)
    top_fraction, top_exponent = np.frexp(fmt.max)
    least, largest = scale_exponents(fmt)
    wanted = int(exponent) - int(top_exponent) + int(fraction > top_fraction)
    return float(2.0 ** max(least, min(wanted, largest)))


def scale_exponents(fmt: NumberFormat) -> tuple[int, int]:
    """The smallest and the largest exponent of a power-of-two scale in training."""
    return -126, min(126, 128 - int(np.frexp(-fmt.lowest)[1]))


def from_distribution(name: str) -> Weighted:
    """Magnitudes of one of `DISTRIBUTIONS` with unit variance, at evenly spaced quantiles."""
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return Weighted(DISTRIBUTIONS[name](shares), np.full(_QUANTILES, 1 / _QUANTILES))


def from_histogram(first_exponent: int, exponents: Sequence[int], zeros: int, largest: float | None = None) -> Weighted:
    """The distribution of a stored log2 histogram; `largest`: the largest magnitude, if it is known.

    Within a binade the density follows a power of the value, chosen by the counts of the binades beside it: if these
    double from one to the next, values are evenly spread; if they fall by half, most lie at its lower end.  Spread
    evenly, a Gaussian seems to lose 1 dB less than it does, because too many values lie where a ULP is small for them.
    """
    counts = np.asarray(exponents, np.float64)
    total = counts.sum() + zeros
    within = 1 + (np.arange(PER_BINADE) + 0.5) / PER_BINADE
    magnitudes = np.outer(np.ldexp(1.0, first_exponent + np.arange(len(counts))), within)
    inside = (magnitudes <= (np.inf if largest is None else largest)) | (np.arange(PER_BINADE) == 0)
    growth = _growth(counts / inside.mean(axis=1), is_whole=largest is None)
    density = np.where(inside, within ** (growth[:, None] - 1), 0.0)
    if largest is not None and counts.any():
        top = int(np.flatnonzero(counts)[-1])
        magnitudes[top, int(inside[top].sum()) - 1] = largest  # the last point, from which the scale follows
    weights = counts[:, None] / total * density / density.sum(axis=1, keepdims=True)
    return Weighted(magnitudes.ravel(), weights.ravel(), zeros / total)


def _growth(counts: Floats, is_whole: bool) -> Floats:
    """log2 of the factor by which counts grow from binade to binade, around each; 1 for a binade that stands alone.

    Beyond the last filled binade half a value is assumed, since the next count would be less than one; but nothing if
    the counts of the last one are not those of the whole binade, because the largest value is known.
    """
    padded = np.concatenate([[0.0], counts, [0.0]])
    steps = np.log2(np.maximum(padded[1:], 0.5) / np.maximum(padded[:-1], 0.5))
    below, above = steps[:-1], steps[1:]
    has_below, has_above = padded[:-2] > 0, padded[2:] > 0
    on_both_sides = has_below & (has_above | is_whole)
    growth = np.where(on_both_sides, (below + above) / 2, np.where(has_below, below, above))
    growth = np.where(has_below | has_above, growth, 1.0)
    return np.clip(growth, -_STEEPEST, _STEEPEST)


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
    errors = ((x - rounded(x, fmt)) ** 2 + (-x - rounded(-x, fmt)) ** 2) / 2  # as many values have either sign
    error = float(np.sum(weights * errors))
    beyond = ((x > fmt.max).astype(float) + (x > -fmt.lowest)) / 2
    power, non_zero = float(np.sum(weights * x**2)), float(weights.sum())
    usage = np.bincount(index, weights, minlength=fmt.max_index + 1)
    usage[0] += data.zeros
    shares = usage[usage > 0]
    signs = 1 - float(usage[0])  # a bit of sign for every value that is not zero
    return Fit(
        sqnr_db=float(10 * np.log10(power / error)) if error > 0 and power > 0 else float("inf"),
        underflow=float(weights[index == 0].sum()) / non_zero if non_zero else 0.0,
        overflow=float(np.sum(weights * beyond)) / non_zero if non_zero else 0.0,
        entropy=float(-np.sum(shares * np.log2(shares))) + signs,
        bits=fmt.bits,
        used=float(np.count_nonzero(usage)) / len(usage),
    )
