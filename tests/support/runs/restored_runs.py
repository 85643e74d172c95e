"""A run to which everything happens that can, of a model with everything that has a state; and how it goes on."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.training import TrainConfig
from altgrad.training.trainer import StepOutcome, Trainer
from tests.support.runs.small_runs import untimed

STEPS = 24

BROKEN = (5, 11, 12, 13, 20)  # batches with a NaN: they poison the running statistics, so that the weights go back

EVERYTHING = TrainConfig(
    format="E4M3", gradient_format="E3M4", max_steps=STEPS, batch_size=16, warmup_steps=2, learning_rate=0.02,
    gradient_clip=0.5, eval_interval=5, diagnostic_interval=3, checkpoint_interval=4, compile=False, threads=1,
    scaling="delayed", amax_history=4, amax_factor=0.5, rounding="stochastic",
    master_weights=False, update_rounding="stochastic",
    enable_partition_clipping=True, enable_emergency_shift=True, emergency_shift_nan_patience=3,
    log_stiffness=True, log_grid_alignment=True, log_ulp=True, use_shadow=True,
    stop_on_collapse=False, non_finite_patience=2,
)  # fmt: skip

MASTERS = EVERYTHING.altered(master_weights=True, update_rounding="nearest")

_STOCHASTIC = {"format": "E4M3", "block": "1x32", "rounding": "stochastic"}

KAHAN = EVERYTHING.altered(update_rounding="kahan", second_moment=_STOCHASTIC)

ECO = EVERYTHING.altered(
    update_rounding="eco_stochastic", first_moment=_STOCHASTIC | {"range_expansion": True}, second_moment=_STOCHASTIC
)

SCHEDULED = EVERYTHING.altered(
    phases=[
        {"from_step": 9, "gemms": {"wgrad": {"format": "E3M4", "rounding": "nearest"}}},
        {"from_share": 0.7, "format": "E5M2", "amax_history": 6, "gemms": {"wgrad": {}}},
    ]
)


class Net(nn.Module):
    """Somebody else's model, with everything that has a state or draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.body = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        )
        with torch.no_grad():
            for parameter in self.body.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.3, generator=generator)
                elif parameter.ndim == 1:
                    parameter.fill_(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.body(x), y)


class Data:
    """A map to learn; the batch of step 2 is an easy one, those of `BROKEN` hold a NaN."""

    vocabulary = None

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        y = torch.zeros(16, 4) if step == 2 else 3 * x[:, :4] - x[:, 4:] + 2
        if step in BROKEN:
            x[3, 3] = math.nan
        return x, y

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self.training(1000)]

    def digest(self) -> str:
        return "a map"


def trainer_of(config: TrainConfig) -> Trainer:
    return Trainer(config, Net(), Data())


def stored(state: Mapping[str, Any]) -> dict[str, Any]:
    """What comes back from a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def seen(outcomes: Sequence[StepOutcome], trainer: Trainer) -> str:
    """Everything a run shows, NaN and inf by name, and its weights."""
    rows = [(untimed(o.record), list(o.layers), list(o.tensors), o.events) for o in outcomes]
    return repr(rows) + repr(
        [part.tolist() for part in trainer.model.state_dict().values() if part.is_floating_point()]
    )


def trained(config: TrainConfig) -> tuple[list[dict[str, Any]], Callable[[int], str]]:
    """The state before each step, and what an undisturbed run shows from a step on."""
    trainer, states, outcomes = trainer_of(config), [], []
    for _ in range(STEPS):
        states.append(stored(trainer.state_dict()))
        outcomes.append(trainer.step())
    return states, lambda step: seen(outcomes[step:], trainer)


def go_on(config: TrainConfig, state: Mapping[str, Any]) -> str:
    torch.manual_seed(12345)  # another process has other random numbers
    trainer = trainer_of(config)
    trainer.load_state_dict(state)
    return seen([trainer.step() for _ in range(state["step"], STEPS)], trainer)
