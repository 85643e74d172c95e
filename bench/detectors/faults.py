"""Faults that no config field plants: in the data, the learning rate, the loss or the weights of single steps.

A fault is a dict with its kind and its numbers, so that it can be stored with the run.  Steps are counted from 1, `to`
is the last step, and what a fault draws depends on the run's seed and the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from altgrad.tasks.regression import Regression
from altgrad.training.trainer import Trainer

Fault = Mapping[str, Any]


class Scaled(Regression):
    """The regression with its loss multiplied by a constant."""

    def __init__(self, factor: float = 1.0, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._factor = factor

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """`factor` times the mean squared error."""
        return self._factor * super().loss(model, batch)


class FaultyBatches:
    """The batches of a run with faults planted in those that it trains on; the held-out ones stay as they are."""

    def __init__(self, batches: Any, faults: Sequence[Fault], seed: int) -> None:
        self._batches, self._faults, self._seed = batches, faults, seed
        self.vocabulary: int | None = batches.vocabulary
        self.source = batches.source

    def training(self, step: int) -> Any:
        """The batch of a step, as the faults leave it."""
        for fault in self._faults:
            if fault["kind"] == "stuck" and acts(fault, step):
                step = fault["from"] + (step - fault["from"]) % fault["of"]
        batch = self._batches.training(step)
        for fault in self._faults:
            if acts(fault, step) and fault["kind"] in _ON_BATCHES:
                batch = _ON_BATCHES[fault["kind"]](batch, fault, np.random.default_rng([self._seed, step]))
        return batch

    def validation(self) -> list[Any]:
        """The run's own, as one batch."""
        parts = zip(*self._batches.validation(), strict=True)
        return [tuple(torch.cat(part) for part in parts)]

    def digest(self) -> str:
        """The run's own: no run is compared by it here."""
        return self._batches.digest()


def acts(fault: Fault, step: int) -> bool:
    """Whether a fault acts in a step."""
    return fault["from"] <= step <= fault.get("to", math.inf)


def _noisy_targets(batch: Any, fault: Fault, rng: np.random.Generator) -> Any:
    inputs, targets = batch
    if targets.is_floating_point():
        return inputs, targets + fault["share"] * torch.from_numpy(rng.standard_normal(targets.shape, np.float32))
    wrong = torch.from_numpy(rng.random(targets.shape) < fault["share"])
    return inputs, torch.where(wrong, torch.from_numpy(rng.integers(0, 256, targets.shape)), targets)


def _garbage(batch: Any, fault: Fault, rng: np.random.Generator) -> Any:
    """Random tokens in a number of rows that has a heavy tail: mostly none or one, sometimes all."""
    inputs, targets = batch
    rows = min(len(inputs), int(fault["scale"] * rng.pareto(1.1)))
    for tokens in (inputs, targets):
        tokens[:rows] = torch.from_numpy(rng.integers(0, 256, tokens[:rows].shape))
    return inputs, targets


_ON_BATCHES = {"labels": _noisy_targets, "garbage": _garbage}


def plant(trainer: Trainer, faults: Sequence[Fault]) -> None:
    """Plant the faults that act on the learning rate, the loss or the weights into a trainer before its first step."""
    if not faults:
        return
    loss = trainer._passes.step_loss

    def faulty(*batch: Any) -> torch.Tensor:
        factors = (math.nan for fault in faults if fault["kind"] == "nan" and acts(fault, trainer.step_number))
        return loss(*batch) * next(factors, 1.0)

    trainer._passes.step_loss = faulty  # type: ignore[assignment]
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: _set_rate(optimizer, faults, trainer.step_number))


def _set_rate(optimizer: torch.optim.Optimizer, faults: Sequence[Fault], step: int) -> None:
    factor = 1.0
    for fault in faults:
        if fault["kind"] == "rate" and acts(fault, step):
            factor *= fault["factor"]
        if fault["kind"] == "restarts":
            phase = step % fault["period"] / fault["period"]
            factor *= fault["low"] + (fault["high"] - fault["low"]) * 0.5 * (1 + math.cos(math.pi * phase))
    for group in optimizer.param_groups:
        group["lr"] *= factor


@torch.no_grad()
def strike(trainer: Trainer, faults: Sequence[Fault], seed: int) -> None:
    """Before a step: add noise to the weights where a fault says so, in units of each tensor's standard deviation."""
    step = trainer.step_number + 1
    for fault in faults:
        if fault["kind"] == "weights" and fault["from"] == step:
            generator = torch.Generator().manual_seed(1000 * seed + step)
            for parameter in trainer.model.parameters():
                if parameter.ndim >= 2:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += fault["size"] * parameter.std() * noise
