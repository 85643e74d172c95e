"""What a diagnostic gets and gives: the weights of each layer before and after the real optimizer step.

Diagnostics measure what happened, never a simulated update: the trainer takes the copies, around the step that it
does anyway.  Results stay tensors until all diagnostics are done, and reach the host in one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from altgrad.formats import NumberFormat
from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.round import FormatTensors, grid_index, round_to_format


@dataclass(frozen=True)
class LayerStep:
    """One layer's weight around one optimizer step; all tensors (out, in), float32.

    "Stored" is the value on the grid that the GEMMs see: without master weights the weight itself, with them its
    rounded image.  `scale` and `inverse_scale` are those of `stored_before`, expanded.
    """

    name: str
    layer: QuantizedLinear
    gradient: Tensor  # as the optimizer saw it, after interventions and clipping
    weight_before: Tensor
    stored_before: Tensor
    intended: Tensor  # weight as the optimizer left it, before any write-back
    stored_after: Tensor
    scale: Tensor
    inverse_scale: Tensor

    @property
    def format(self) -> NumberFormat:
        return self.layer.format_of("weight")

    @cached_property
    def tensors(self) -> FormatTensors:
        return FormatTensors.view(self.layer.site("weight").spec)

    @cached_property
    def update(self) -> Tensor:
        """The update that the optimizer intended."""
        return self.intended - self.weight_before

    @cached_property
    def index_before(self) -> Tensor:
        """Grid index of the stored weight before the step (int32)."""
        return self._index(self.stored_before)

    @cached_property
    def index_after(self) -> Tensor:
        """Grid index of the stored weight after the step, on the grid (format and scale) it had before the step."""
        return self._index(self.stored_after)

    def _index(self, stored: Tensor) -> Tensor:
        return grid_index(round_to_format(stored * self.inverse_scale, self.tensors), self.tensors)


@dataclass
class Measured:
    """What diagnostics found: whole-model values by metric, and per layer (site `weight`) by metric."""

    step: dict[str, Tensor | float] = field(default_factory=dict)
    layers: dict[str, dict[str, Tensor | float]] = field(default_factory=dict)

    def add(self, metric: str, per_layer: Mapping[str, Tensor | float], whole: Tensor | float) -> None:
        """One metric's values by layer, and its value for the whole model."""
        self.step[metric] = whole
        for name, value in per_layer.items():
            self.layers.setdefault(name, {})[metric] = value


@dataclass(frozen=True)
class Context:
    """The model around one measured step, before the optimizer moved; `loss_of` runs a forward pass on the batch."""

    step: int
    model: nn.Module
    layers: Mapping[str, QuantizedLinear]
    loss_of: Callable[[], Tensor]


class Diagnostic(Protocol):
    """One measurement.  `before_step` runs after backward and interventions, `measure` after the optimizer step."""

    def before_step(self, context: Context) -> None: ...

    def measure(self, steps: Sequence[LayerStep]) -> Measured: ...


@dataclass(frozen=True)
class DiagnosticSnapshot:
    """The measurements of one step on the host: whole-model values, and rows of the `layers` table."""

    step: int
    values: Mapping[str, float]
    layers: Sequence[Mapping[str, Any]]


def pooled_mean(values: Sequence[Tensor]) -> Tensor:
    """Mean over all elements of several tensors (float32)."""
    total = torch.stack([value.sum(dtype=torch.float32) for value in values]).sum()
    return total / max(1, sum(value.numel() for value in values))
