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
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.ranks import ALONE, Ranks
from altgrad.quantization.kernel.round import FormatTensors, grid_index
from altgrad.quantization.layers import QuantizedLinear


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
    def scaled_weight(self) -> Tensor:
        """The weight before the step in the units of the grid: what is rounded."""
        return self.weight_before * self.inverse_scale

    @cached_property
    def ulps_moved(self) -> Tensor:
        """Signed number of grid positions from `stored_before` to `stored_after`; NaN where one is not finite.

        On the grid (format and scale) of before the step, as if it had no largest value: where the scale has grown, a
        new value may lie above it.  A floating-point grid goes on with further exponents, a fixed-point one with the
        same step.  A new value between two positions, which a smaller scale makes possible, counts as the nearest one.
        """
        before, after = (stored * self.inverse_scale for stored in (self.stored_before, self.stored_after))
        finite = torch.isfinite(before) & torch.isfinite(after)
        moved = self._position(after) - self._position(before)
        return moved.to(torch.float32).masked_fill_(~finite, torch.nan)

    def _position(self, scaled: Tensor) -> Tensor:
        """Index of the nearest value on the extended grid, in a type that holds the difference of two."""
        if self.format.exponent_bits == 0:
            return (scaled.double() * 2**self.format.mantissa_bits).round_()
        index = grid_index(scaled, self.tensors)
        return index if self.format.mantissa_bits < 22 else index.to(torch.int64)


Ratio = tuple[Tensor, Tensor | int]  # numerator and denominator


@dataclass
class Measured:
    """What diagnostics found, as 0-d tensors: whole-model values by metric, and by layer and metric (site `weight`).

    A value that is not defined (a mean over nothing, a correlation with a constant) is left NaN here; see `suite`.
    """

    step: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, metric: str, per_layer: Mapping[str, Tensor], whole: Tensor | None = None) -> None:
        """One metric's values by layer, and its value for the whole model where it has one."""
        if whole is not None:
            self.step[metric] = whole
        for name, value in per_layer.items():
            self.layers.setdefault(name, {})[metric] = value

    def add_ratio(self, metric: str, per_layer: Mapping[str, Ratio]) -> None:
        """A metric that is a ratio of sums over elements: by layer, and of the sums over all layers."""
        whole = torch.stack([top for top, _ in per_layer.values()]).sum() / sum(
            bottom for _, bottom in per_layer.values()
        )
        self.add(metric, {name: top / bottom for name, (top, bottom) in per_layer.items()}, whole)


@dataclass(frozen=True)
class MeasuredStep:
    """The model around one measured step, before the optimizer moved, its gradients in `.grad` as backward left them.

    `loss_of` runs the step's forward pass again on the same batch and returns the loss (0-d, with its graph).
    With several `ranks` the gradients are those of the global batch already, and `loss_of` sees this rank's rows.
    """

    step: int
    layers: Mapping[str, QuantizedLinear]
    loss_of: Callable[[], Tensor]
    ranks: Ranks = ALONE


class Diagnostic(Protocol):
    """One measurement, around a step that is taken anyway.

    `before_step` runs right after backward, before interventions and clipping touch a gradient; `measure` after the
    optimizer step and, without master weights, the write-back.
    """

    def before_step(self, context: MeasuredStep) -> None:
        """Most need nothing here."""
        return None

    def measure(self, steps: Sequence[LayerStep]) -> Measured: ...


@dataclass(frozen=True)
class DiagnosticSnapshot:
    """The measurements of one step on the host: whole-model values, and rows of the `layers` table (site `weight`)."""

    step: int
    values: Mapping[str, float]
    layers: Sequence[Mapping[str, Any]]
