"""Evaluation on held-out batches: the model's mode, and the means, in one transfer from the device at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class HeldOutMean:
    """The mean loss and metrics of batches; each batch counts as its number of rows."""

    def __init__(self, device: torch.device) -> None:
        self._total = torch.zeros((), dtype=torch.float32, device=device)
        self._own: dict[str, Tensor] = {}
        self._rows = 0

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], rows: int) -> None:
        """Add a batch: its loss (0-d), and the metrics of the task by name (0-d)."""
        self._total += loss * rows
        for name, value in metrics.items():
            self._own[name] = self._own.get(name, torch.zeros_like(self._total)) + value * rows
        self._rows += rows

    def read(self) -> tuple[float, dict[str, float]] | None:
        """(mean loss, mean of each metric, its name beginning with `validation_`); None without batches."""
        if not self._rows:
            return None
        mean, *others = (torch.stack([self._total, *self._own.values()]) / self._rows).tolist()
        return mean, {f"validation_{name}": value for name, value in zip(self._own, others, strict=True)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in evaluation mode; on exit the mode of every module is restored.

    Modules that a user has frozen in evaluation mode (norms with running statistics) therefore stay frozen.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
