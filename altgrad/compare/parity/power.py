"""How many seeds would decide a comparison: the power of the t tests of `verdict`, exact for normal differences.

With n paired differences of true mean m and standard deviation s, their mean is normal around m and independent of
their standard deviation S, for which (n - 1) S^2 / s^2 has a chi-squared distribution.  So the power is the chance of
the mean given S, which is a difference of two normal probabilities, integrated over S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from altgrad.compare.parity.student_t import t_quantile

POWER = 0.8
MOST_SEEDS = 200  # a larger number is no plan
_below = NormalDist().cdf
_NODES, _WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(48))


def power(n: int, mean: float, spread: float, margin: float, level: float) -> float:
    """The chance that n seeds find what is true: a mean within the margin, or one beyond it.

    `mean`, `spread`: true mean and standard deviation of the paired differences.  `level`: chance of a wrong verdict;
    each one-sided test has half of it.
    """
    if spread == 0:
        return 1.0
    t, scale = t_quantile(n - 1, 1 - level) / math.sqrt(n), math.sqrt(n)
    at, edge = abs(mean) / spread, margin / spread  # in standard deviations
    if at < edge:
        found: Callable[[float], float] = lambda s: max(  # noqa: E731
            _below(scale * (edge - t * s - at)) - _below(scale * (-edge + t * s - at)), 0.0
        )
        return _over_spread(found, n - 1, most=edge / t)
    return _over_spread(lambda s: _below(scale * (at - edge - t * s)), n - 1)


@lru_cache(maxsize=4096)
def seeds_needed(mean: float, spread: float, margin: float, level: float, fewest: int) -> int | None:
    """The smallest number of seeds, at least `fewest`, whose power is `POWER`; None above `MOST_SEEDS`."""
    low, high = fewest - 1, fewest
    while power(high, mean, spread, margin, level) < POWER:
        if high == MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, mean, spread, margin, level) >= POWER else (middle, high)
    return high


def _over_spread(chance: Callable[[float], float], freedom: int, most: float = math.inf) -> float:
    """The mean of `chance(S / s)` over the distribution of S; `chance` is 0 above `most`."""
    reach = 9 / math.sqrt(2 * freedom)
    low, high = max(1 - reach, 0.0), min(1 + reach, most)
    if high <= low:
        return 0.0
    constant = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)
    total = 0.0
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        s = low + (high - low) * (node + 1) / 2
        total += weight * chance(s) * math.exp(constant + (freedom - 1) * math.log(s) - freedom * s * s / 2)
    return total * (high - low) / 2
