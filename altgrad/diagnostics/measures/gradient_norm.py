"""Gradient norm of each layer's weight; the norm over the whole model is in the record of every step anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured, MeasuredStep


class LayerGradientNorm(Diagnostic):
    """L2 norm of the gradient that backward computed, before interventions and clipping."""

    def __init__(self) -> None:
        self._norms: dict[str, Tensor] = {}

    def before_step(self, context: MeasuredStep) -> None:
        gradients = {name: layer.weight_gradient for name, layer in context.layers.items()}
        # in float64: the squares of gradients below 4e-23, which have vanished, are 0 in float32
        self._norms = {
            name: torch.linalg.vector_norm(g, dtype=torch.float64) for name, g in gradients.items() if g is not None
        }

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        norms = self._norms
        found.add("gradient_norm", {step.name: norms[step.name] for step in steps if step.name in norms})
        return found
