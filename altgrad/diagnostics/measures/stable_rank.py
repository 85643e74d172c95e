"""Stable rank of each weight matrix: about the number of directions in which it acts strongly.

It needs the largest singular value.  Library solvers synchronise with the host and raise on NaN, and power iteration
from a vector would have to keep that vector between measurements.  Squaring the Gram matrix does neither, and costs a
small share of a training step, because the cost depends on the smaller side of the matrix and not on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured

SQUARINGS = 9  # equals 2^10 power iterations: the rank is 0.1 % too large for a random matrix, below 1 % for any


class StableRank(Diagnostic):
    """|W|_F^2 / |W|_2^2 of the weight before the step.

    The value of the whole model is the median over layers, because that of the output head falls to nearly 1 in every
    healthy run.
    """

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        ranks = {step.name: stable_rank(step.layer.one_matrix(step.weight_before)) for step in steps}
        found = Measured()
        found.add("stable_rank", ranks, torch.stack(list(ranks.values())).nanmedian())
        return found


def stable_rank(weight: Tensor) -> Tensor:
    """|W|_F^2 / |W|_2^2 of a matrix (rows, columns), between 1 and the smaller side; NaN for an all-zero matrix."""
    unit = weight / torch.linalg.vector_norm(weight)
    gram = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit  # trace 1, largest eigenvalue |W|_2^2
    power = gram
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / power.trace()
    return (power * power).sum() / (power * (gram @ power)).sum()
