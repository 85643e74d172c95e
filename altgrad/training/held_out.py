"""Means of losses, and evaluation on held-out batches: the model's mode, one transfer from the device at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def mean_of(losses: Sequence[Tensor]) -> Tensor:
    """The mean of losses (0-d each), float32 or float64: a mean in BF16 would round to 8 bits once more."""
    together = torch.stack(list(losses))
    return together.to(torch.promote_types(together.dtype, torch.float32)).mean()


class HeldOutMean:
    """The mean loss and metrics of batches; each batch counts as its number of rows, or its loss as its weight.

    A metric that a task gives for some batches only is their mean.  Sums are float32 whatever dtype a loss has: 128
    rows with a loss of 600 in FP16 would add up to inf.
    """

    def __init__(self, device: torch.device) -> None:
        self._total = torch.zeros((), dtype=torch.float32, device=device)
        self._own: dict[str, Tensor] = {}
        self._rows, self._weights = 0, 0.0
        self._own_rows: dict[str, int] = {}

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], rows: int, weight: float | None = None) -> None:
        """Add a batch: its loss (0-d), and the task's metrics by name (0-d).  weight: of the loss; None: its rows."""
        weight = rows if weight is None else weight
        if weight:  # the loss of no token is no number
            self._total += loss.float() * weight
        for name, value in metrics.items():
            self._own[name] = self._own.get(name, torch.zeros_like(self._total)) + value.float() * rows
            self._own_rows[name] = self._own_rows.get(name, 0) + rows
        self._rows += rows
        self._weights += weight

    def read(self) -> tuple[float, dict[str, float]] | None:
        """(mean loss, mean of each metric, its name beginning with `validation_`); None without batches."""
        if not self._weights:
            return None
        means = [self._total / self._weights, *(total / self._own_rows[name] for name, total in self._own.items())]
        mean, *others = torch.stack(means).tolist()
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
