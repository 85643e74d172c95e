"""The ladder knows no unit of a loss that has none: times any constant, the same acts come at the same steps."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.events import Event
from altgrad.stability.ladder import RescueLadder
from altgrad.stability.protocol import StepState
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import multiply_loss

CONFIG = TrainConfig(enable_rescue_ladder=True, rescue_rungs=["skip", "rate", "rollback"], rescue_window=5)
FACTORS = (1e-6, 1.0, 1e6)
HEALTHY_STEPS = 120


def climbed(losses: Sequence[float], vocabulary: int | None, kept: int | None = None) -> list[tuple[int, str]]:
    """The acts of a ladder that sees these losses, (step, kind); `kept`: it is restored after so many steps."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ladder = RescueLadder(CONFIG, {}, optimizer, vocabulary)
    events: list[Event] = []
    for step, loss in enumerate(losses, 1):
        measured = {"learning_rate": 1.0}
        state = StepState(step, loss, abs(loss), [weight], measured, torch.tensor(1.0), events=events)
        ladder.on_gradients(state)
        ladder.after_step(state)
        if step == kept:
            state_of_it = ladder.state_dict()
            ladder = RescueLadder(CONFIG, {}, optimizer, vocabulary)
            ladder.load_state_dict(state_of_it)
    return [(event.step, event.kind) for event in events]


def regression(seed: int, burst: float = 0.0) -> list[float]:
    """A squared error from 0.09 to 0.004 with the noise of its batches; after `HEALTHY_STEPS` steps plus `burst`."""
    rng = random.Random(seed)
    course = [0.004 + 0.086 * math.exp(-step / 30) for step in range(HEALTHY_STEPS)]
    return [loss * rng.gammavariate(25, 0.04) for loss in course] + [(0.004 + burst) * rng.gammavariate(25, 0.04)] * 14


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_times_any_constant_leads_to_the_same_acts(seed: int) -> None:
    expected = [(121, "skip"), (122, "skip"), (123, "skip"), (124, "skip"), (125, "skip")]
    expected += [(126, "rate_cut"), (131, "rollback")]
    for factor in (*FACTORS, 1 / 3, 2.0**13):
        assert climbed([factor * loss for loss in regression(seed, burst=0.12)], None) == expected, factor
        assert climbed([factor * loss for loss in regression(seed)], None) == [], factor


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("below zero", [-900 - 300 * (1 - math.exp(-step / 40)) + 9 * math.sin(7 * step) for step in range(120)]),
        ("rises in warm-up", [5.0 + 0.1 * step for step in range(30)] + [8 * 0.97**step for step in range(90)]),
        ("zero at first", [0.0] * 20 + [2.0 * math.exp(-step / 60) for step in range(100)]),
        ("memorised", [max(0.0, 1 - step / 80) for step in range(120)]),
        ("far from zero", [1e4 + 50 * math.exp(-step / 40) + 5 * math.sin(3 * step) for step in range(120)]),
    ],
)
def test_a_healthy_loss_of_any_shape_is_no_trouble(name: str, losses: list[float]) -> None:
    for factor in FACTORS:
        assert climbed([factor * loss for loss in losses], None) == []


def test_in_nats_the_margin_stays_the_field_whatever_was_learned() -> None:
    """By hand: the best is 2.0, so that 2.45 is no trouble and 2.55 is; without a unit, neither has doubled."""
    calm = [2.0] * 40
    for vocabulary in (2, 256, 50_257):
        assert climbed([*calm, 2.45, 2.55], vocabulary) == [(42, "skip")]
    for vocabulary in (None, 1):
        assert climbed([*calm, 2.45, 2.55], vocabulary) == []
        assert climbed([*calm, 3.9, 4.1], vocabulary) == [(42, "skip")]


@pytest.mark.parametrize("vocabulary", [None, 256])
def test_a_restored_ladder_acts_alike_and_an_older_one_knows_its_average(vocabulary: int | None) -> None:
    losses = [loss * (1 if vocabulary is None else 50) for loss in regression(1, burst=0.12)]
    whole = climbed(losses, vocabulary)
    assert whole and all(climbed(losses, vocabulary, kept=step) == whole for step in (3, 30, 119, 124, 128))
    weight = nn.Parameter(torch.ones(2))
    ladder = RescueLadder(CONFIG, {}, torch.optim.SGD([weight], lr=1.0), vocabulary)
    older = {name: kept for name, kept in ladder.state_dict().items() if name != "course"} | {"smoothed": [1.5, 0.75]}
    ladder.load_state_dict(older)
    assert ladder.state_dict()["smoothed"] == [1.5, 0.75]


class Scaled(nn.Module):
    """A small network whose loss is a constant times a mean squared error."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.factor = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), factor

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor * (self.layers(inputs) - targets).square().mean()


class Sines:
    """Eight numbers and a smooth function of three of them."""

    vocabulary = None

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(step))
        return inputs, 0.3 * torch.sin(inputs[:, :3].sum(1, keepdim=True))

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return []

    def digest(self) -> str:
        return "sines"


def test_a_trained_regression_is_rescued_at_the_same_steps_whatever_its_unit() -> None:
    """Adam with an epsilon of nearly 0 and without clipping takes the same steps for any unit."""
    fields: dict[str, Any] = {"format": "FP32", "max_steps": 60, "warmup_steps": 5, "learning_rate": 3e-3}
    fields |= {"adam_epsilon": 1e-30, "gradient_clip": 0.0, "diagnostic_interval": 5, "compile": False}
    found = []
    for factor in FACTORS:
        trainer = Trainer(CONFIG.altered(**fields), model=Scaled(factor), batches=Sines())
        multiply_loss(trainer, dict.fromkeys(range(40, 52), 20.0))
        outcomes = [trainer.step() for _ in range(60)]
        found.append([(event.step, event.kind) for outcome in outcomes for event in outcome.events])
    assert found[0] == found[1] == found[2]
    assert [act for act in found[1] if act[1] != "skip"] == [(45, "rate_cut"), (50, "rollback")]
