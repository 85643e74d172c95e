"""What a step draws depends on seed and step alone, in every format; the caller's random numbers are left alone."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altgrad.training.trainer import Trainer
from tests.support.runs.restored_runs import EVERYTHING, MASTERS, Data, Net, trainer_of


def test_the_caller_s_random_numbers_are_left_alone():
    trainer = trainer_of(EVERYTHING)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer.step()
    trainer.validation_loss()
    trainer.step()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_dropout_masks_are_the_same_in_every_run_of_a_seed_and_others_at_every_step(compiled):
    """FP32 twice in one process, and the masks as the model draws them in another format."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 1, bias=False)
            nn.init.ones_(self.linear.weight)
            self.register_buffer("mask", torch.zeros(64))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            ones = nn.functional.dropout(torch.ones(64), 0.5, self.training)
            if self.training:
                self.mask.copy_(ones)
            return self.linear(x).mean() + ones.mean()

    def masks(**changes: Any) -> list[list[float]]:
        torch.rand(1)
        config = MASTERS.altered(use_shadow=False, compile=compiled, **changes)
        trainer, found = Trainer(config, Masked(), Data()), []
        for _ in range(4):
            trainer.step()
            found.append(trainer.model.mask.tolist())
        return found

    plain = {"format": "FP32", "gradient_format": None}
    first = masks(**plain)
    assert first == masks(**plain) == masks(format="E7M0", scaling="none")
    assert all(one != other for place, one in enumerate(first) for other in first[:place])
    assert masks(**plain, seed=8) != first


def test_what_a_model_draws_from_python_and_numpy_repeats_with_seed_and_step_and_the_caller_s_is_left_alone():
    drawn: list[tuple[float, float]] = []

    class Drawing(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            drawn.append((random.random(), float(np.random.random())))
            return super().forward(x, y)

    def draws(**changes: Any) -> list[tuple[float, float]]:
        drawn.clear()
        trainer = Trainer(MASTERS.altered(use_shadow=False, **changes), model=Drawing(), batches=Data())
        for _ in range(3):
            trainer.step()
        return list(drawn)

    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()
    first = draws()
    assert random.getstate() == before[0] and all(map(np.array_equal, np.random.get_state(), before[1]))
    random.seed(6)
    assert draws(format="E5M2") == first and len({one for pair in first for one in pair}) == 6
    assert draws(seed=8) != first


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_shadow_drops_what_the_step_dropped(accumulate):
    config = MASTERS.altered(format="FP32", gradient_format=None, scaling="none", rounding="nearest", amax_factor=1.0)
    trainer = trainer_of(config.altered(diagnostic_interval=1, enable_partition_clipping=False, accumulate=accumulate))
    record = trainer.step().record
    assert record["shadow_loss"] == record["loss"] and record["gradient_snr_db"] == math.inf
