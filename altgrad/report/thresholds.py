"""Limits beyond which a measurement is bad by itself; both the order of the signals and the search for causes use them.

The collapse rules have other thresholds, which are config fields (see `TrainConfig`, kind `judging`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A metric is out of bounds above `limit` or, if `above_is_bad` is false, below it; `reason`: why it is there."""

    limit: float
    above_is_bad: bool
    reason: str


BOUNDS: Mapping[str, Bound] = {
    "non_finite_gradients": Bound(0.0, True, "a single NaN or inf in a gradient makes the step worthless"),
    "overflow_rate": Bound(0.01, True, "1 value in 100 at the largest finite value distorts the sums of a GEMM"),
    "underflow_rate": Bound(0.5, True, "half of the values are gone; of small ones many may go without harm"),
    "realised_displacement": Bound(0.25, False, "three quarters of the intended update do not arrive"),
    "gradient_sparsity": Bound(0.9, True, "9 of 10 weights have no gradient"),
    "gradient_cosine_similarity": Bound(0.5, False, "more than 60 degrees away from the unrounded gradient"),
}

RISE = 0.2  # nats by which the last training loss must exceed its best: above the scatter of single batches
RISE_SHARE = 1 / 15  # the same as a share of the progress if the unit is unknown: 0.2 of 3 nats
GROWTH = 10.0  # largest gradient norm divided by its median: an order of magnitude exceeds the scatter of batches
CONCENTRATED = 10.0  # a layer this many times worse than the median layer may be exempted by itself


def is_out_of_bounds(metric: str, value: float) -> bool:
    """Whether a value is beyond the metric's bound; false for a metric without a bound."""
    bound = BOUNDS.get(metric)
    if bound is None:
        return False
    return value > bound.limit if bound.above_is_bad else value < bound.limit
