"""The weights around one optimizer step, copied so that the diagnostics can say what the step really did."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from altgrad.diagnostics.protocol import LayerStep
from altgrad.quantization.layers import QuantizedLinear


class WeightWatch:
    """Copies of each layer's weight before the step, after the optimizer, and after the write-back.

    A layer whose weight got no gradient in this step is left out: nothing can be measured there.
    """

    def __init__(self, layers: Mapping[str, QuantizedLinear]) -> None:
        self._layers = layers
        self._before: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._intended: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Copy weight, stored weight, scale and inverse scale."""
        self._before = {
            name: (layer.weight.detach().clone(), *layer.rounded_weight_and_scale())
            for name, layer in self._layers.items()
            if layer.weight.grad is not None
        }

    def after_optimizer(self) -> None:
        """Copy the weight as the optimizer left it, before any write-back."""
        self._intended = {name: self._layers[name].weight.detach().clone() for name in self._before}

    def steps(self) -> list[LayerStep]:
        """What happened, per layer; forgets the copies."""
        found = []
        for name, (weight, stored, scale, inverse) in self._before.items():
            layer = self._layers[name]
            gradient = layer.weight.grad
            assert gradient is not None
            after = layer.rounded_weight()
            found.append(LayerStep(name, layer, gradient, weight, stored, self._intended[name], after, scale, inverse))
        self._before, self._intended = {}, {}
        return found


class RandomState:
    """The state of torch's generators on the CPU and on the device in use: taken, kept, put back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def take(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    def put(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for cuda in state[1:]:  # other GPUs of the machine, which may be fewer on the next one, are left alone
            torch.cuda.set_rng_state(cuda, self._device)
