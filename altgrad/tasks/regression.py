"""Regression: a perceptron learns the sum of sine waves of a few random directions.  Its loss is no cross-entropy.

    python tune/sweep.py --task regression --task-arg functions=8 width=128 --formats E4M3 E7M0

The targets have a variance of about 1, so that a loss of 1 is that of a constant, and 0 that of the function itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.tasks.random_draws import normal
from altgrad.training.task.protocol import Split


class Perceptron(nn.Module):
    """Layers of one width with GELUs between them."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *([width] * depth)]
        pairs = itertools.pairwise(sizes)
        hidden = [part for a, b in pairs for part in (nn.Linear(a, b, dtype=torch.float32), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, 1)."""
        found: Tensor = self.layers(inputs)
        return found


class Regression:
    """The task.  inputs: dimensions of x.  functions: number of sine waves.  width, depth: of the hidden layers."""

    unit = "squared error"

    def __init__(self, inputs: int = 16, functions: int = 4, width: int = 64, depth: int = 2) -> None:
        self._inputs, self._width, self._depth = inputs, width, depth
        generator = torch.Generator().manual_seed(functions)
        self._directions = torch.randn(inputs, functions, generator=generator) * (2 / math.sqrt(inputs))

    def model(self, config: TrainConfig) -> nn.Module:
        """A perceptron with torch's initialisation."""
        return Perceptron(self._inputs, self._width, self._depth)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean squared error."""
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs), targets)

    def data(self, config: TrainConfig, split: Split) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Batches drawn anew at every step: x (batch, inputs), normal, and the function of x (batch, 1)."""

        def batch(number: int) -> tuple[Tensor, Tensor]:
            [inputs] = normal(config, split, number, self._inputs)
            waves = torch.sin(inputs @ self._directions)
            return inputs, waves.sum(1, keepdim=True) * math.sqrt(2 / self._directions.shape[1])

        return batch


task = Regression
