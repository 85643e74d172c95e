"""Size of the intended update relative to the weight, and share of the gradient that is exactly zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import total


class UpdateSize(Diagnostic):
    """RMS of the update that the optimizer intended, divided by RMS of the weight before it."""

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        squares = {
            step.name: torch.stack([_norm(step.update).square(), _norm(step.weight_before).square()]) for step in steps
        }
        found = Measured()
        whole = torch.stack(list(squares.values())).sum(0)
        found.add(
            "update_to_weight_ratio", {name: _rms_ratio(pair) for name, pair in squares.items()}, _rms_ratio(whole)
        )
        return found


def _norm(x: Tensor) -> Tensor:
    """In float64, in which squares of float32 values neither vanish nor overflow."""
    return torch.linalg.vector_norm(x, dtype=torch.float64)


def _rms_ratio(squares: Tensor) -> Tensor:
    return (squares[0] / squares[1]).sqrt()


class GradientSparsity(Diagnostic):
    """Share of the weights' gradient values that are exactly zero, most often because a rounded operand is zero."""

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        zeros = {step.name: (total(step.gradient == 0), step.gradient.numel()) for step in steps}
        found.add_ratio("gradient_sparsity", zeros)
        return found
