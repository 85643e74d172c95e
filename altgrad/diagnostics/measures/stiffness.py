"""Stiffness: the grid spacing of the format at each weight, without the subnormal floor (DIAG-01).

Rounding to nearest loses an update that is much smaller than the weight's stiffness.  Formats differ in the stiffness
of their weights: in floating point it is proportional to the binade of the weight, in fixed point constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.diagnostics.moments import Moments
from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured

_EXPONENT = 0x7F800000  # exponent bits of float32


def stiffness_of(step: LayerStep) -> Tensor:
    """2^(floor(log2 |w|) - M) of each scaled weight w, in fixed point 2^-M; (out, in).  Undefined at w = 0: here 0.

    E4M3, w = 5: 2^(2 - 3) = 0.5.  Weights below 2^-126, which are subnormal in float32, count as zero.
    """
    power = (step.scaled_weight.view(torch.int32) & _EXPONENT).view(torch.float32)
    if step.format.exponent_bits == 0:
        power = (power > 0).to(torch.float32)
    return power * step.tensors.step


class Stiffness(Diagnostic):
    """Mean, largest and standard deviation of the stiffness over non-zero weights, in scaled units."""

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        parts = {}
        for step in steps:
            stiffness = stiffness_of(step)
            parts[step.name] = Moments.of(stiffness, stiffness > 0)
        whole = Moments.pool(parts.values())
        found.add("stiffness_mean", {name: part.mean for name, part in parts.items()}, whole.mean)
        found.add("stiffness_max", {name: part.largest for name, part in parts.items()}, whole.largest)
        found.add("stiffness_std", {name: part.std for name, part in parts.items()}, whole.std)
        return found
