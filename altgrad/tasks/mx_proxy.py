"""The student-teacher proxy in which training in MX formats goes astray, from its description.

    python tune/sweep.py --task mx_proxy --recipes mxfp8 mxfp4 --set max_steps=2000 batch_size=256

Su et al., "Characterization and Mitigation of Training Instabilities in Microscaling Formats" (arXiv 2506.20752), study
residual perceptrons on Gaussian inputs, since these show the instabilities of large language models at little cost: a
student learns the outputs of a fixed random teacher with a little noise, under a squared error.  A block is

    a <- a + W2 f(W1 norm(a))        the hidden layer is four times as wide; the teacher has no norm

The paper traces the runaway to gradients that become biased when the affine weights of the layer norms, close to each
other and hence rounded alike, are quantised with the activations; here the GEMM operands are rounded, which the norms'
outputs are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.tasks.random_draws import normal
from altgrad.text.error_hints import shown
from altgrad.training.task.protocol import Split

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": nn.functional.relu, "gelu": nn.functional.gelu}
_TEACHER = 0x7EAC  # seed of the teacher, the same for all runs


class ResidualBlock(nn.Module):
    """One residual block; a (batch, width)."""

    def __init__(self, width: int, function: Callable[[Tensor], Tensor], norm: bool) -> None:
        super().__init__()
        float32: dict[str, Any] = {"dtype": torch.float32}
        self.norm = nn.LayerNorm(width, **float32) if norm else nn.Identity()
        self.up = nn.Linear(width, 4 * width, bias=False, **float32)
        self.down = nn.Linear(4 * width, width, bias=False, **float32)
        self._function = function

    def forward(self, a: Tensor) -> Tensor:
        found: Tensor = a + self.down(self._function(self.up(self.norm(a))))
        return found


class ResidualPerceptron(nn.Module):
    """Blocks one after another."""

    def __init__(self, depth: int, width: int, function: Callable[[Tensor], Tensor], norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, function, norm) for _ in range(depth))

    def forward(self, a: Tensor) -> Tensor:
        for block in self.blocks:
            a = block(a)
        return a


class Proxy:
    """The task.  noise: standard deviation of what is added to the teacher's outputs.  activation: relu or gelu."""

    unit = "squared error"

    def __init__(
        self,
        depth: int = 4,
        width: int = 256,
        activation: str = "gelu",
        layer_norm: bool = True,
        noise: float = 1e-3,
    ) -> None:
        if activation not in _FUNCTIONS:
            raise ConfigError(f"activation={shown(activation)}; known: {', '.join(_FUNCTIONS)}")
        self._shape = depth, width, _FUNCTIONS[activation]
        self._layer_norm, self._noise, self._width = layer_norm, noise, width
        self._teacher: nn.Module | None = None

    def model(self, config: TrainConfig) -> nn.Module:
        """The student, with torch's initialisation."""
        return ResidualPerceptron(*self._shape, self._layer_norm)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean squared error over batch and width."""
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs), targets)

    def data(self, config: TrainConfig, split: Split) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Batches drawn anew at every step: normal inputs and noisy outputs of the teacher, each (batch, width)."""
        teacher = self._made_teacher()

        def batch(number: int) -> tuple[Tensor, Tensor]:
            inputs, noise = normal(config, split, number, self._width, self._width)
            with torch.no_grad():
                return inputs, teacher(inputs) + self._noise * noise

        return batch

    def _made_teacher(self) -> nn.Module:
        if self._teacher is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_TEACHER)
                self._teacher = ResidualPerceptron(*self._shape, norm=False).requires_grad_(False)
        return self._teacher


task = Proxy
