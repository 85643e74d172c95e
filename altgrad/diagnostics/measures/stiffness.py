"""Stiffness: the grid spacing of a format at each weight without the subnormal floor, and the gradient.

Rounding to nearest loses an update that is much smaller than the weight's stiffness.  Formats differ in the stiffness
of their weights: in floating point it is proportional to the binade of the weight, in fixed point constant.

A positive correlation with the gradients means that large gradients act on coarsely spaced weights: the
spacing of the format follows the training signal.  The gradient is divided by the scale of the weight, so that it has
the units of the stiffness.  The control, with shuffled gradients, gives the correlation that the same two distributions
have by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import PairSums, ValueSums, mask, only, total

SHUFFLE_SEED = 20
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

    of_grid = True

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        parts = {}
        for step in steps:
            stiffness = stiffness_of(step)
            parts[step.name] = ValueSums.of(stiffness, stiffness > 0)
        whole = ValueSums.pool(parts.values())
        found.add("stiffness_mean", {name: part.mean for name, part in parts.items()}, whole.mean)
        found.add("stiffness_max", {name: part.largest for name, part in parts.items()}, whole.largest)
        found.add("stiffness_std", {name: part.std for name, part in parts.items()}, whole.std)
        return found


class GradientStiffness(Diagnostic):
    """Correlations of |gradient| with stiffness, their mean ratio, and the share of gradients below stiffness.

    All are taken over non-zero weights, the log correlation also over non-zero gradients only.  A correlation is
    undefined if the stiffness is constant (fixed point, or all weights in one binade).
    """

    of_grid = True

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        plain, logs, control, ratio, below = {}, {}, {}, {}, {}
        for step in steps:
            stiffness = stiffness_of(step)
            gradient = step.scaled_gradient
            kept = stiffness > 0
            name, count = step.name, total(kept)
            plain[name], control[name] = PairSums.of_each([gradient, shuffled(gradient)], stiffness, kept)
            logs[name] = PairSums.of(gradient.log2(), stiffness.log2(), kept & (gradient != 0))
            ratio[name] = total(only(mask(kept), gradient / stiffness)), count
            below[name] = total((gradient < stiffness) & kept), count
        found = Measured()
        for metric, parts in (
            ("gradient_stiffness_pearson", plain),
            ("gradient_stiffness_log_correlation", logs),
            ("gradient_stiffness_shuffled", control),
        ):
            per_layer = {name: part.correlation for name, part in parts.items()}
            found.add(metric, per_layer, PairSums.pool(parts.values()).correlation)
        found.add_ratio("gradient_stiffness_ratio", ratio)
        found.add_ratio("gradient_below_stiffness", below)
        return found


def shuffled(values: Tensor) -> Tensor:
    """The values in a random order that depends only on their number."""
    generator = torch.Generator(values.device).manual_seed(SHUFFLE_SEED)
    order = torch.randperm(values.numel(), generator=generator, device=values.device)
    return values.flatten()[order].view(values.shape)
