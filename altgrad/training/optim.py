"""AdamW, the learning-rate schedule, and the write-back that keeps weights without masters on their grid."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.site import round_site
from altgrad.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of a step (from 1): linear warm-up, then constant, or a cosine down to a share of the peak."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; fused, which updates all parameters in one pass."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


class WriteBack:
    """Without master weights: rounds each layer's weight back to its grid after the optimizer step.

    `corrections[layer]` accumulates rounded minus intended weight (out, in), for whoever wants to know what the
    optimizer intended; `counts[layer]` are the rounding's counts of the last step.
    """

    def __init__(self, layers: Mapping[str, QuantizedLinear], config: TrainConfig) -> None:
        self._layers: dict[str, QuantizedLinear] = {}
        for name, layer in layers.items():
            if not any(layer.weight is other.weight for other in self._layers.values()):
                self._layers[name] = layer
        self._rounding = config.update_rounding
        self.corrections = {name: torch.zeros_like(layer.weight) for name, layer in self._layers.items()}
        self.counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self) -> None:
        """Round all weights in place."""
        for name, layer in self._layers.items():
            site = layer.site("weight")
            mode = site.mode._replace(rounding=self._rounding, at_rest=True)
            rounded, self.counts[name] = round_site(layer.weight, site.spec, site.history, layer.key, mode)
            self.corrections[name] += rounded - layer.weight
            layer.weight.copy_(rounded)

    def forget(self) -> None:
        """Zero the corrections: the rounding of the initial weights is no part of any step."""
        for correction in self.corrections.values():
            correction.zero_()
        self.counts.clear()
