"""The guard in training: a step that is not finite touches nothing; poisoned weights and all that follows go back."""

import math

import pytest
import torch

from altgrad.config.recipe import GEMM_SITES
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import MICRO, SMALL, multiply_loss, poison, train, weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_touches_neither_weights_nor_moments(value):
    trainer = Trainer(MICRO)
    poison(trainer, 3, value=value)
    trainer.step(), trainer.step()
    before, moments = weights(trainer.model), {k: v["exp_avg"].clone() for k, v in trainer.optimizer.state.items()}
    outcome = trainer.step()
    assert [event.kind for event in outcome.events] == ["skip"]
    assert outcome.record["non_finite_gradients"] > 0 and not math.isfinite(outcome.record["loss"])
    assert torch.equal(before, weights(trainer.model))
    assert all(torch.equal(moments[key], state["exp_avg"]) for key, state in trainer.optimizer.state.items())
    assert math.isfinite(trainer.step().record["loss"])


@pytest.mark.parametrize(("name", "noticed"), [("ln_f.weight", 6), ("wte.weight", 8)])
def test_poisoned_weights_are_restored_from_the_last_good_snapshot(name, noticed):
    """At the next step where the loss shows it; at the next snapshot where no batch uses the weight (byte 0)."""
    trainer = Trainer(MICRO)
    for _ in range(5):  # a snapshot is taken after step 4
        trainer.step()
    dict(trainer.model.named_parameters())[name].data[0] = math.nan
    events = [event for _ in range(4) for event in trainer.step().events]
    (rollback,) = [event for event in events if event.kind == "rollback"]
    assert (rollback.step, rollback.detail["to_step"]) == (noticed, 4)
    assert torch.isfinite(weights(trainer.model)).all() and math.isfinite(trainer.step().record["loss"])


def test_poisoned_moments_are_restored_too():
    trainer = Trainer(MICRO)
    for _ in range(5):
        trainer.step()
    next(iter(trainer.optimizer.state.values()))["exp_avg"].fill_(math.nan)
    kinds = [event.kind for _ in range(3) for event in trainer.step().events]
    assert "rollback" in kinds
    assert math.isfinite(trainer.step().record["loss"]) and torch.isfinite(weights(trainer.model)).all()


def test_nothing_of_a_skipped_step_is_remembered_and_a_rollback_takes_the_amax_history_back():
    config = MICRO.altered(format="E4M3", scaling="delayed", amax_history=6)
    trainer = Trainer(config)
    poison(trainer, 3)

    def histories() -> torch.Tensor:
        return torch.stack([layer.site(s).history for layer in trainer.layers.values() for s in GEMM_SITES[1:]]).clone()

    trainer.step(), trainer.step()
    before = histories()
    trainer.step()
    assert torch.equal(histories(), before) and before.count_nonzero(dim=1).tolist() == [2] * len(before)
    trainer.step()
    kept = histories()
    trainer.step()
    assert not torch.equal(histories(), kept)
    trainer.model.ln_f.weight.data[0] = math.nan
    assert [event.kind for event in trainer.step().events] == ["skip", "rollback"]
    assert torch.equal(histories(), kept)


def test_parts_frozen_in_evaluation_mode_stay_frozen_and_running_statistics_are_saved_from_a_nan():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.norm = torch.nn.BatchNorm1d(6), torch.nn.BatchNorm1d(6)
            self.linear = torch.nn.Linear(6, 3)
            self.register_buffer("mask", torch.full((2,), -math.inf))  # as it should be

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return ((self.linear(self.norm(self.frozen(x))) - y) ** 2).mean()

    class Data:
        vocabulary = None

        def training(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            return (x * math.nan if step == 7 else x), x[:, :3]

        def validation(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return [self.training(99)]

        def digest(self) -> str:
            return ""

    model = Net()
    model.frozen.eval()
    trainer = Trainer(MICRO.altered(batch_size=8, format="E4M3", log_stiffness=False), model, Data())
    kinds = [[event.kind for event in trainer.step().events] for _ in range(12)]
    assert kinds == [[]] * 6 + [["skip", "rollback"]] + [[]] * 5
    assert torch.isfinite(model.norm.running_mean).all() and math.isfinite(trainer.validation_loss())
    assert not model.frozen.training and model.norm.training and model.training
    assert model.frozen.num_batches_tracked == 0
    assert Trainer(MICRO.altered(batch_size=8), Net().eval(), Data()).model.norm.training  # nobody trains like that


@pytest.mark.parametrize("overflow", ["saturate", "inf"])
def test_a_delayed_scale_that_overflowed_to_inf_is_wider_at_the_next_step(overflow):
    """Gradients a million times as large from step 6 on: with inf steps are lost, but not all that follow.

    An inf reaches the layers below as inf or NaN, of which no amax can be told: a step widens one layer of five.
    """
    config = SMALL.altered(format="E5M2", overflow=overflow, scaling="delayed", amax_history=64)
    trainer, outcomes = train(config, dict.fromkeys(range(6, 13), 1e6))
    skipped = [event.step for outcome in outcomes for event in outcome.events if event.kind == "skip"]
    assert (
        skipped == (list(range(6, 6 + len(trainer.layers))) if overflow == "inf" else []) and len(trainer.layers) == 5
    )


def test_a_step_skipped_for_a_broken_batch_leaves_the_histories_as_they_were():
    trainer = Trainer(SMALL.altered(format="E5M2", overflow="inf", scaling="delayed"))
    multiply_loss(trainer, {4: math.nan})
    for _ in range(3):
        trainer.step()
    before = {name: history.clone() for name, history in trainer.quantized.histories().items()}
    assert trainer.step().events[0].kind == "skip"
    assert all(torch.equal(history, before[name]) for name, history in trainer.quantized.histories().items())
