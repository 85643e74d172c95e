"""Runs small enough for a test, and faults planted in them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first step of an optimizer does, for seconds: in each process that is forked before it
from torch import Tensor, nn

from altgrad.events import Event
from altgrad.results import Run
from altgrad.training import TrainConfig
from altgrad.training.trainer import StepOutcome, Trainer

SMALL = TrainConfig(
    model="micro", n_layer=1, max_steps=12, batch_size=4, eval_interval=6, eval_batches=1, diagnostic_interval=4,
    checkpoint_interval=5, compile=False, warmup_steps=2, threads=1,
)  # fmt: skip
# two layers, and everything is measured
MICRO = SMALL.altered(n_layer=None, log_stiffness=True, log_grid_alignment=True, log_ulp=True, use_shadow=True)
# fields of a run whose steps before the last one do nothing but train
BARE: dict[str, Any] = {
    "model": "micro", "batch_size": 2, "max_steps": 20, "eval_interval": 20, "diagnostic_interval": 20,
}  # fmt: skip
# those of a run that is compiled whole: the tests with them share the graph that the compiler's cache has
COMPILED: dict[str, Any] = BARE | {"n_layer": 1}
# fields of the trials of a sweep that is killed: a checkpoint every 20 steps
SWEPT: dict[str, Any] = {
    "model": "micro", "batch_size": 4, "warmup_steps": 5, "eval_interval": 20, "eval_batches": 2,
    "diagnostic_interval": 20, "checkpoint_interval": 20,
}  # fmt: skip
# what a run measures of itself and its machine: no part of what must repeat
TIMED = {"elapsed_seconds", "tokens_per_second", "cpu_utilisation", "resident_memory", "gpu_utilisation", "gpu_memory"}


def set_words(**fields: Any) -> list[str]:
    """Fields as `--set` wants them: `compile=false`."""
    return [f"{name}={json.dumps(value)}" for name, value in fields.items()]


def untimed(record: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in TIMED}


def losses(run: Run) -> list[Any]:
    return run.table("steps", ["loss", "validation_loss"]).select(["step", "loss", "validation_loss"]).to_pylist()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def multiply_loss(trainer: Trainer, factors: dict[int, float]) -> None:
    """Multiply the loss of some steps, and with it their gradients: a NaN is a broken step, 1000 a burst."""
    real = trainer._passes.step_loss

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return real(inputs, targets) * factors.get(trainer.step_number, 1.0)

    trainer._passes.step_loss = loss  # type: ignore[assignment]


def poison(trainer: Trainer, *steps: int, value: float = math.nan) -> None:
    """Make loss and gradient of some steps non-finite, as a broken kernel or a bad batch would."""
    multiply_loss(trainer, dict.fromkeys(steps, value))


def train_poisoned(config: TrainConfig, steps: int, *poisoned: int) -> tuple[Trainer, list[Event]]:
    """So many steps of a config, some of them poisoned: the trainer, and all that happened."""
    trainer = Trainer(config)
    poison(trainer, *poisoned)
    return trainer, [event for _ in range(steps) for event in trainer.step().events]


def train(
    config: TrainConfig, factors: dict[int, float] | None = None, **own: Any
) -> tuple[Trainer, list[StepOutcome]]:
    """All steps of a config, with planted factors of the loss."""
    trainer = Trainer(config, **own)
    multiply_loss(trainer, factors or {})
    return trainer, [trainer.step() for _ in range(config.max_steps)]


def same(one: float, other: float) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))


def write_text(folder: Path, content: bytes) -> str:
    path = folder / "text.txt"
    path.write_bytes(content)
    return str(path)
