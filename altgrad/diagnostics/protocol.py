"""Input and output of a diagnostic: each layer's weights before and after the real optimizer step, and its results.

Diagnostics measure the real update, never a simulated one: the trainer copies the weights around the step that it takes
anyway.  Results stay tensors until all diagnostics are done, and reach the host in one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.kernel.ranks import ALONE, Ranks
from altgrad.quantization.kernel.round import FormatTensors, grid_index


@dataclass(frozen=True)
class LayerStep:
    """One layer's weight around one optimizer step; all tensors (out, in), float32.

    "Stored" means the value on the grid that the forward GEMM reads: without master weights the weight itself, with
    them the rounded weight.  `scale` and `inverse_scale` are those of `stored_before`, expanded.

    A master weight that the GEMM rotates is read as W R, and W R has a grid, W has none.  `stored_*`, `scale`,
    `inverse_scale` and what begins with `read_` or `scaled_` are then in the shape of W R (see `as_read`), and what is
    compared with a stored value or a grid must be, too.
    """

    name: str
    layer: RoundedGemm
    gradient: Tensor  # as the optimizer saw it, after interventions and clipping
    weight_before: Tensor
    stored_before: Tensor
    intended: Tensor  # weight as the optimizer left it, before any write-back
    stored_after: Tensor
    scale: Tensor
    inverse_scale: Tensor
    decay: float = 0.0  # share of the weight that decoupled decay takes: learning rate x weight decay

    @property
    def format(self) -> NumberFormat:
        """The format to which the weight is rounded."""
        return self.layer.format_of("weight")

    @cached_property
    def tensors(self) -> FormatTensors:
        """The format as the kernel reads it, on the device."""
        return FormatTensors.view(self.layer.site("weight").spec)

    @cached_property
    def update(self) -> Tensor:
        """The update that the optimizer intended."""
        return self.intended - self.weight_before

    @cached_property
    def read_weight(self) -> Tensor:
        """The weight before the step as the forward GEMM reads it, but not rounded."""
        return self.layer.as_read(self.weight_before)

    @cached_property
    def read_update(self) -> Tensor:
        """The change of `read_weight` that the optimizer intended."""
        return self.layer.as_read(self.update)

    @cached_property
    def scaled_weight(self) -> Tensor:
        """`read_weight` in the units of the grid, weight / scale, which is the value that is rounded."""
        return self.read_weight * self.inverse_scale

    @cached_property
    def scaled_gradient(self) -> Tensor:
        """|gradient| of `read_weight` in the units of the grid; W R has the gradient G R."""
        return (self.layer.as_read(self.gradient.float()) * self.inverse_scale).abs()

    @cached_property
    def ulps_moved(self) -> Tensor:
        """Signed number of grid positions from `stored_before` to `stored_after`; NaN if one of them is not finite.

        Positions are counted on the grid (format and scale) before the step: in E4M3, 16 to 20 is 2 positions, since
        the ULP there is 2.  If the scale grows in the step, a new value may lie above that grid; it is continued, in
        floating point by further exponents and in fixed point by the same step.  If the scale shrinks, a new value may
        lie between two positions; the nearest one counts.
        """
        before, after = (stored * self.inverse_scale for stored in (self.stored_before, self.stored_after))
        finite = torch.isfinite(before) & torch.isfinite(after)
        moved = self._position(after) - self._position(before)
        return moved.to(torch.float32).masked_fill_(~finite, torch.nan)

    def _position(self, scaled: Tensor) -> Tensor:
        """Index of the nearest value on the continued grid, in a dtype that holds the difference of two indices."""
        if self.format.exponent_bits == 0:
            return (scaled.double() * 2**self.format.mantissa_bits).round_()
        index = grid_index(scaled, self.tensors)
        return index if self.format.mantissa_bits < 22 else index.to(torch.int64)


Ratio = tuple[Tensor, Tensor | int]  # numerator and denominator


@dataclass
class Measured:
    """Results of diagnostics as 0-d tensors: `step` by metric, `layers` by layer and metric (site `weight`).

    An undefined value (the mean of no values, a correlation with a constant) is NaN here; `suite` removes it.
    """

    step: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, metric: str, per_layer: Mapping[str, Tensor], whole: Tensor | None = None) -> None:
        """Add a metric: its values by layer, and the value for the whole model if there is one."""
        if whole is not None:
            self.step[metric] = whole
        for name, value in per_layer.items():
            self.layers.setdefault(name, {})[metric] = value

    def add_ratio(self, metric: str, per_layer: Mapping[str, Ratio]) -> None:
        """Add a metric that is a ratio of sums: per layer, and for the whole model the ratio of the added sums.

        Layers with 1 of 2 and 0 of 8 weights stalled give the rates 0.5 and 0, and for the model 1 / 10.
        """
        whole = torch.stack([top for top, _ in per_layer.values()]).sum() / sum(
            bottom for _, bottom in per_layer.values()
        )
        self.add(metric, {name: top / bottom for name, (top, bottom) in per_layer.items()}, whole)


@dataclass(frozen=True)
class MeasuredStep:
    """The model in a measured step, after backward and before any change of its gradients (in `.grad`) or weights.

    `loss_of` runs the step's forward pass again on the same batch and returns the loss (0-d, with its autograd graph).
    With several `ranks` the gradients are already those of the global batch, but `loss_of` uses this rank's rows.
    """

    step: int
    layers: Mapping[str, RoundedGemm]
    loss_of: Callable[[], Tensor]
    ranks: Ranks = ALONE


class Diagnostic(Protocol):
    """One measurement around a training step.

    `before_step` is called right after backward, before interventions and clipping change a gradient; `measure` is
    called after the optimizer step and, without master weights, after the write-back.  `of_grid`: it compares weights
    with their grid, and is given those alone that keep one (see `LayerRoundings.keeps_grid`).
    """

    of_grid: bool = False

    def before_step(self, context: MeasuredStep) -> None:
        """Does nothing by default."""
        return None

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        """The metrics of this step; `steps`: its layers, see `LayerStep`."""


@dataclass(frozen=True)
class DiagnosticSnapshot:
    """The measurements of one step on the host: whole-model values, and rows of the `layers` table (site `weight`)."""

    step: int
    values: Mapping[str, float]
    layers: Sequence[Mapping[str, Any]]
