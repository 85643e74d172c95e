"""Tasks as somebody else writes them: they inherit nothing, and know nothing of altgrad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES = 4


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points in 8 dimensions, and in which of 4 quadrants of the first two they lie."""
    inputs = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, 0] > 0).long() * 2 + (inputs[:, 1] > 0).long()


class Quadrants:
    """Classification with dropout, batch norm and a metric; its data are a map-style dataset."""

    unit = "nats"

    def __init__(self, width: int = 16, count: int = 96) -> None:
        self.width, self.count = width, count

    def model(self, config: Any) -> nn.Module:
        layers = [nn.Linear(8, self.width), nn.BatchNorm1d(self.width), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.Linear(self.width, CLASSES))

    def loss(self, model: nn.Module, batch: Any) -> Any:
        inputs, targets = batch
        logits = model(inputs)
        right = (logits.argmax(-1) == targets).float().mean()
        return nn.functional.cross_entropy(logits, targets), {"accuracy": right}

    def data(self, config: Any, split: str) -> Any:
        return TensorDataset(*examples(self.count, 0 if split == "training" else 1))

    def classes(self, config: Any) -> int:
        return CLASSES


class Products:
    """Regression by a function of the step, with an optimizer of its own and nothing held out."""

    unit = "squared error"

    def model(self, config: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.mse_loss(model(batch["inputs"]), batch["targets"])

    def data(self, config: Any, split: str) -> Callable[[int], dict[str, Tensor]] | None:
        return batch_of_products if split == "training" else None

    def optimizer(self, model: nn.Module, config: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=0.9)


def batch_of_products(step: int) -> dict[str, Tensor]:
    inputs, _ = examples(12, 100 + step)
    return {"inputs": inputs, "targets": inputs[:, :2].prod(1, keepdim=True)}


products = Products()
