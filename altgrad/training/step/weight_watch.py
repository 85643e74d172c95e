"""Watches the weights: copies them around the optimizer step, and notices whether anything else has changed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adamax, Optimizer, RMSprop

from altgrad import torch_private
from altgrad.diagnostics.protocol import LayerStep
from altgrad.formats import NumberFormat
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

_COUPLED = (ASGD, Adadelta, Adagrad, Adamax, RMSprop)  # Adam and its kin say it in their groups


class WeightWatch:
    """Copies of each layer's weight before the step, after the optimizer, and after the write-back.

    A layer whose weight got no gradient in this step is left out.
    """

    def __init__(self, layers: Mapping[str, RoundedGemm], optimizer: Optimizer) -> None:
        self._layers = layers
        self._optimizer = optimizer
        self._groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._before: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._intended: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Copy weight, stored weight, scale and inverse scale."""
        self._before = {
            name: (_copy(layer.weight), *layer.rounded_weight_and_scale())
            for name, layer in self._layers.items()
            if layer.weight_gradient is not None
        }

    def after_optimizer(self) -> None:
        """Copy the weight as the optimizer left it, before any write-back."""
        self._intended = {name: _copy(self._layers[name].weight) for name in self._before}

    def steps(self) -> list[LayerStep]:
        """The step of each layer, for the diagnostics; drops the copies."""
        found = []
        for name, (weight, stored, scale, inverse) in self._before.items():
            layer = self._layers[name]
            gradient = layer.weight_gradient
            assert gradient is not None
            after, intended = layer.rounded_weight_and_scale()[0], self._intended[name]
            group = self._groups.get(id(layer.weight), {})
            decay = decoupled_decay(self._optimizer, group)
            found.append(
                LayerStep(name, layer, gradient.float(), weight, stored, intended, after, scale, inverse, decay)
            )
        self._before, self._intended = {}, {}
        return found


def decoupled_decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """Share of a weight by which its decay alone shrinks it in a step: learning rate x weight decay.

    0 where the decay is part of the gradient and passes through moments: by Adam it is divided by the gradient's size.
    """
    coupled = isinstance(optimizer, _COUPLED) or (isinstance(optimizer, SGD) and group.get("momentum", 0.0) != 0)
    if not group.get("decoupled_weight_decay", not coupled):
        return 0.0
    return float(group.get("lr", 0.0)) * float(group.get("weight_decay", 0.0))


class ForeignChanges:
    """Detects that anything but the optimizer changed a weight or the format to which it is rounded.

    It compares torch's version counter of every parameter, so that it needs no copy and no transfer and detects any
    in-place change, whatever code makes it.
    """

    def __init__(self, parameters: Sequence[Tensor], layers: Mapping[str, RoundedGemm]) -> None:
        self._parameters = parameters
        self._layers = layers
        self.accept()

    def accept(self) -> None:
        """Take all changes until now as the optimizer's, or as known."""
        self._seen = self._state()

    def found(self) -> bool:
        """Whether anything changed since the last call of `found` or `accept`."""
        before, self._seen = self._seen, self._state()
        return before != self._seen

    def _state(self) -> tuple[list[int], list[NumberFormat]]:
        versions = [torch_private.version_of(parameter) for parameter in self._parameters]
        return versions, [layer.format_of("weight") for layer in self._layers.values()]


def _copy(weight: Tensor) -> Tensor:
    """A detached float32 copy; formats are simulated in float32."""
    return weight.detach().to(torch.float32, copy=True)
