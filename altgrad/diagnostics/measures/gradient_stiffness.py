"""Correlation of gradients with the grid spacing at their weights (DIAG-03).

A positive correlation means that large gradients act on coarsely spaced weights: the spacing of the format follows the
training signal.  The gradient is divided by the scale of the weight, so that it has the units of the stiffness.  The
control, with shuffled gradients, gives the correlation that the same two distributions have by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.diagnostics.measures.stiffness import stiffness_of
from altgrad.diagnostics.moments import Comoments, mask, only, total
from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured

SHUFFLE_SEED = 20


class GradientStiffness(Diagnostic):
    """Correlations of |gradient| with stiffness, their mean ratio, and the share of gradients below stiffness.

    All are taken over non-zero weights, the log correlation also over non-zero gradients only.  A correlation is
    undefined if the stiffness is constant (fixed point, or all weights in one binade).
    """

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        plain, logs, control, ratio, below = {}, {}, {}, {}, {}
        for step in steps:
            stiffness = stiffness_of(step)
            gradient = (step.gradient.float() * step.inverse_scale).abs()
            kept = stiffness > 0
            name, count = step.name, total(kept)
            plain[name], control[name] = Comoments.of_each([gradient, shuffled(gradient)], stiffness, kept)
            logs[name] = Comoments.of(gradient.log2(), stiffness.log2(), kept & (gradient != 0))
            ratio[name] = total(only(mask(kept), gradient / stiffness)), count
            below[name] = total((gradient < stiffness) & kept), count
        found = Measured()
        for metric, parts in (
            ("gradient_stiffness_pearson", plain),
            ("gradient_stiffness_log_correlation", logs),
            ("gradient_stiffness_shuffled", control),
        ):
            per_layer = {name: part.correlation for name, part in parts.items()}
            found.add(metric, per_layer, Comoments.pool(parts.values()).correlation)
        found.add_ratio("gradient_stiffness_ratio", ratio)
        found.add_ratio("gradient_below_stiffness", below)
        return found


def shuffled(values: Tensor) -> Tensor:
    """The values in a random order that depends only on their number."""
    generator = torch.Generator(values.device).manual_seed(SHUFFLE_SEED)
    order = torch.randperm(values.numel(), generator=generator, device=values.device)
    return values.flatten()[order].view(values.shape)
