"""Student's t distribution: quantiles and tails.

The probability is a finite sum in the angle whose tangent is t / sqrt(freedom) (Abramowitz and Stegun 26.7.3 and
26.7.4).  scipy.special has these functions, but importing scipy takes as long as opening a sweep.
"""

from __future__ import annotations

import math
from functools import lru_cache

CONFIDENCE = 0.95


@lru_cache(maxsize=4096)
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t for which P(|T| < t) = `confidence`, where T has Student's distribution with `freedom` degrees of freedom.

    By bisection on the angle.  Example: t_quantile(2) = 4.303.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def t_tail(t: float, freedom: int) -> float:
    """P(T > t), where T has Student's distribution with `freedom` degrees of freedom; t may be infinite."""
    beyond = (1 - _within(math.atan(abs(t) / math.sqrt(freedom)), freedom)) / 2
    return beyond if t > 0 else 1 - beyond


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)) for T with Student's distribution."""
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
