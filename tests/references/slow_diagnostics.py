"""Second implementations of the diagnostics from their definitions: loops over single weights in float64.

Nothing here shares code with `altgrad.diagnostics`.  A whole model's value is that of one long list of weights, so
that pooling over layers is checked by not doing it.  None means: not defined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from statistics import median_low

import numpy as np
import torch

from altgrad.diagnostics.measures.stiffness import SHUFFLE_SEED
from altgrad.formats import NumberFormat
from tests.references.oracles import groups, power_of_two_scale, quantise_by_hand


@dataclass
class SlowStep:
    """A layer's weight around one step with nearest rounding; arrays (out, in), float32.

    `written`: without master weights the weight as the write-back left it.
    """

    fmt: NumberFormat
    granularity: str | None  # None: no scaling
    weight: np.ndarray
    intended: np.ndarray
    gradient: np.ndarray
    written: np.ndarray | None = None

    def rounded(self, weight: np.ndarray) -> np.ndarray:
        return quantise_by_hand(weight, self.fmt, self.granularity or "tensor", self.granularity is not None)[0]

    def inverse_scale(self) -> np.ndarray:
        inverse = np.ones(self.weight.size)
        for group in groups(self.weight.shape, self.granularity) if self.granularity else []:
            inverse[group] = 1 / power_of_two_scale(float(np.abs(self.weight.reshape(-1)[group]).max()), self.fmt)
        return inverse.reshape(self.weight.shape)

    @cached_property
    def elements(self) -> list[Element]:
        generator = torch.Generator().manual_seed(SHUFFLE_SEED)
        order = torch.randperm(self.weight.size, generator=generator).numpy()
        inverse = self.inverse_scale()
        scaled_gradient = (self.gradient * inverse).reshape(-1)
        if self.written is None:
            before, after = self.rounded(self.weight), self.rounded(self.intended)
        else:
            before, after = self.weight, self.written
        columns = (self.weight, self.intended, self.gradient, before, after, inverse)
        index_before, index_after = (_indices(stored * inverse, self.fmt) for stored in (before, after))
        return [
            Element(self.fmt, *(float(value) for value in values), float(scaled_gradient[order[i]]), int(old), int(new))
            for i, (*values, old, new) in enumerate(
                zip(*(column.reshape(-1) for column in columns), index_before, index_after, strict=True)
            )
        ]


@dataclass
class Element:
    """One weight around one step."""

    fmt: NumberFormat
    weight: float
    intended: float
    gradient: float
    stored_before: float
    stored_after: float
    inverse_scale: float
    other_gradient: float  # a shuffled one, scaled
    index_before: int
    index_after: int

    @property
    def stiffness(self) -> float:
        if self.fmt.exponent_bits == 0:
            return 2.0**-self.fmt.mantissa_bits
        return 2.0 ** (math.frexp(self.weight * self.inverse_scale)[1] - 1 - self.fmt.mantissa_bits)

    @property
    def scaled_gradient(self) -> float:
        return abs(self.gradient * self.inverse_scale)

    @property
    def grid_error(self) -> float:
        scaled = self.weight * self.inverse_scale
        return abs(scaled - self.stored_before * self.inverse_scale) / self.fmt.ulp(scaled)


def _indices(scaled: np.ndarray, fmt: NumberFormat) -> list[int]:
    return [position(float(value), fmt) for value in scaled.reshape(-1)]


def position(value: float, fmt: NumberFormat) -> int:
    """Signed position of a value on a format's grid without a largest value, in exact arithmetic; ties to even."""
    magnitude, exponent = abs(Fraction(value)), 0
    if fmt.exponent_bits and value:  # the binade of the value, that of the smallest normal one at least
        exponent = max(math.frexp(value)[1] - 1, fmt.min_exponent) - fmt.min_exponent
    steps = magnitude / Fraction(2) ** (fmt.min_exponent + exponent - fmt.mantissa_bits)
    return int(math.copysign(1, value)) * round(exponent * 2**fmt.mantissa_bits + steps)


def measure(steps: Sequence[SlowStep]) -> dict[str, float | None]:
    """Every metric that is a matter of single weights, over all weights of the given layers."""
    weights = [element for step in steps for element in step.elements]
    nonzero = [e for e in weights if e.weight != 0]
    updated = [e for e in weights if e.intended != e.weight]
    both = [e for e in nonzero if e.gradient != 0]
    moves = sorted(abs(e.index_after - e.index_before) for e in weights)
    stiffness = [e.stiffness for e in nonzero]
    errors = [e.grid_error for e in weights]
    return {
        "stall_rate": _mean([float(e.stored_before == e.stored_after) for e in updated]),
        "zero_update_fraction": _mean([float(e.stored_before == e.stored_after) for e in weights]),
        "update_to_weight_ratio": math.sqrt(
            sum((e.intended - e.weight) ** 2 for e in weights) / sum(e.weight**2 for e in weights)
        ),
        "gradient_sparsity": _mean([float(e.gradient == 0) for e in weights]),
        "stiffness_mean": _mean(stiffness),
        "stiffness_max": max(stiffness),
        "stiffness_std": float(np.std(stiffness)),
        "gradient_stiffness_pearson": _correlation([(e.scaled_gradient, e.stiffness) for e in nonzero]),
        "gradient_stiffness_shuffled": _correlation([(abs(e.other_gradient), e.stiffness) for e in nonzero]),
        "gradient_stiffness_log_correlation": _correlation(
            [(math.log2(e.scaled_gradient), math.log2(e.stiffness)) for e in both]
        ),
        "gradient_stiffness_ratio": _mean([e.scaled_gradient / e.stiffness for e in nonzero]),
        "gradient_below_stiffness": _mean([float(e.scaled_gradient < e.stiffness) for e in nonzero]),
        "grid_error_mean": _mean(errors),
        "grid_error_max": max(errors),
        "grid_error_std": float(np.std(errors)),
        "grid_error_relative": _mean([abs(e.weight - e.stored_before) / abs(e.weight) for e in nonzero]),
        "on_grid_fraction": _mean([float(e.weight == e.stored_before) for e in weights]),
        "ulps_moved_mean": _mean(moves),
        "ulps_moved_median": moves[(len(moves) - 1) // 2],
        "ulps_moved_max": moves[-1],
        "ulps_moved_zero_fraction": _mean([float(moved == 0) for moved in moves]),
        "stable_rank": median_low(stable_rank(step.weight) for step in steps),
    }


def stable_rank(weight: np.ndarray) -> float:
    singular = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    return float((singular**2).sum() / singular[0] ** 2)


def realised_displacement(stored_changes: Sequence[np.ndarray], updates: Sequence[np.ndarray]) -> float:
    """From the changes and the intended updates of every step of the window."""
    change, intent = sum(stored_changes).reshape(-1), sum(updates).reshape(-1)
    return sum(a * b for a, b in zip(change, intent, strict=True)) / sum(b * b for b in intent)


def exponent_counts(values: np.ndarray) -> dict[int, int]:
    """floor(log2 |x|) -> how many, for finite non-zero values."""
    counts: dict[int, int] = {}
    for value in values.reshape(-1).tolist():
        if value != 0 and math.isfinite(value):
            exponent = math.frexp(value)[1] - 1
            counts[exponent] = counts.get(exponent, 0) + 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    x, y = ([pair[side] for pair in pairs] for side in (0, 1))
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(x, y)[0, 1])
