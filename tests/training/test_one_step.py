"""What belongs to one step, on a model of two small layers: its random numbers, its counts, and what is left out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.stability.protocol import StepState
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL

ROWS, IN = 8, 6
CONFIG = SMALL.altered(batch_size=ROWS, format="E4M3", diagnostic_interval=100, eval_interval=100, max_steps=100)


class Net(nn.Module):
    """Keeps what it was asked, what it drew from torch's global numbers, and each loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = nn.Linear(IN, 5), nn.Linear(5, 1, bias=False), nn.Linear(3, 3)
        self.drawn: list[float] = []
        self.losses: list[float] = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.drawn.append(torch.rand(()).item())
        loss = ((self.second(self.first(x).relu()).squeeze(1) - y) ** 2).mean()
        self.losses.append(loss.item())
        return loss


class Data:
    """Rows drawn from torch's global random numbers, as augmentation does; two equal held-out batches."""

    vocabulary = None

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(ROWS, IN)
        self.drawn.append(x[0, 0].item())
        return x, x.sum(dim=1)

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        x = torch.linspace(-1, 1, ROWS * IN).reshape(ROWS, IN)
        return [(x, x.sum(dim=1))] * 2

    def digest(self) -> str:
        return ""


def trainer_of(**fields: Any) -> tuple[Trainer, Net, Data]:
    net, data = Net(), Data()
    return Trainer(CONFIG.altered(**fields), net, data), net, data


def stepped(steps: int, **fields: Any) -> tuple[list[float], list[float]]:
    """What data and model drew in some steps, whatever the caller drew before."""
    trainer, net, data = trainer_of(**fields)
    torch.manual_seed(len(data.drawn) + steps)
    for _ in range(steps):
        trainer.step()
    return data.drawn, net.drawn


def test_data_and_model_draw_the_same_numbers_in_every_run_of_a_seed_and_others_at_every_step() -> None:
    data, model = stepped(3)
    assert stepped(4, format="E7M0")[0][:3] == data and stepped(4, format="FP32")[1][:3] == model
    assert len(set(data + model)) == 6, "the model draws other numbers than the data"
    assert not set(data + model) & {number for drawn in stepped(3, seed=7) for number in drawn}


def test_what_the_model_draws_is_the_same_however_much_the_data_drew() -> None:
    class More(Data):
        def training(self, step: int) -> tuple[Tensor, Tensor]:
            torch.rand(step)
            return super().training(step)

    net = Net()
    trainer = Trainer(CONFIG, net, More())
    trainer.step(), trainer.step()
    assert net.drawn == stepped(2)[1]


def test_a_model_that_draws_in_evaluation_draws_the_same_at_every_validation() -> None:
    trainer, net, _ = trainer_of()
    trainer.validation_loss()
    first = list(net.drawn)
    trainer.step()
    del net.drawn[:]
    torch.rand(5)
    trainer.validation_loss()
    assert net.drawn == first and len(set(first)) == 2
    other, net, _ = trainer_of(seed=7)
    other.validation_loss()
    assert net.drawn != first


def test_held_out_batches_are_rounded_with_noise_of_their_own_that_follows_seed_and_step() -> None:
    def losses(trainer: Trainer, net: Net) -> tuple[float, ...]:
        del net.losses[:]
        mean = trainer.validation_loss()
        assert mean == pytest.approx(sum(net.losses) / 2, rel=1e-6)
        return tuple(net.losses)

    trainer, net, _ = trainer_of(rounding="stochastic", learning_rate=1e-30)
    found = [losses(trainer, net)]
    assert losses(trainer, net) == found[0]
    trainer.step()  # by a rate that moves nothing
    found.append(losses(trainer, net))
    other, net, _ = trainer_of(rounding="stochastic", seed=7)
    found.append(losses(other, net))
    assert len({loss for pair in found for loss in pair}) == 6


def test_training_rounds_with_other_noise_at_every_step_and_seed() -> None:
    class Same(Data):
        def training(self, step: int) -> tuple[Tensor, Tensor]:
            return self.validation()[0]

    found = []
    for seed in (1, 2):
        net = Net()
        trainer = Trainer(CONFIG.altered(rounding="stochastic", learning_rate=1e-30, seed=seed), net, Same())
        for _ in range(3):
            trainer.step()
        found += net.losses
    assert len(set(found)) == 6


@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf, math.nan], [math.inf] * 3])
def test_the_share_of_bad_gradients_is_counted_among_all_of_them(bad: list[float]) -> None:
    """Of 6 x 5 weights, 5 biases and 5 weights; the unused layer has no gradient."""
    trainer, net, _ = trainer_of()

    def spoilt(gradient: Tensor) -> Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[: len(bad)] = torch.tensor(bad)
        return spoilt

    net.first.weight.register_hook(spoilt)
    outcome = trainer.step()
    assert outcome.record["non_finite_gradients"] == len(bad) / 40
    assert outcome.record["loss"] > 0 and [event.kind for event in outcome.events] == ["skip"]
    assert "stall_rate" not in outcome.record


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-25, 1e-10])
def test_the_norm_of_gradients_that_have_vanished_is_not_zero(size: float) -> None:
    trainer, net, _ = trainer_of(format="FP32")
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: gradient.sign() * size)
    record = trainer.step().record
    squares = sum(float((p.grad.double() ** 2).sum()) for p in net.parameters() if p.grad is not None)
    assert record["gradient_norm"] == pytest.approx(math.sqrt(squares), rel=1e-6)
    assert (record["gradient_norm"] == 0.0) == (size == 0.0) and record["non_finite_gradients"] == 0.0


def test_a_finite_step_has_no_bad_gradients_and_counts_its_rows_as_tokens() -> None:
    trainer, _, _ = trainer_of()
    records = [trainer.step().record for _ in range(2)]
    assert [record["non_finite_gradients"] for record in records] == [0.0, 0.0]
    assert [record["tokens"] for record in records] == [ROWS, 2 * ROWS]


@pytest.mark.parametrize("master_weights", [True, False])
def test_a_layer_that_no_batch_reaches_is_measured_nowhere(master_weights: bool) -> None:
    trainer, net, _ = trainer_of(diagnostic_interval=1, use_shadow=True, log_ulp=True, master_weights=master_weights)
    before = net.unused.weight.detach().clone()
    outcome = trainer.step()
    assert {row["step"] for row in outcome.layers} == {1}
    sites = {row["layer"]: set() for row in outcome.layers}
    for row in outcome.layers:
        sites[row["layer"]].add(row["site"])
    used = {"weight", "activation", "gradient"} | (set() if master_weights else {"update"})
    assert sites == {"first": used, "second": used} | ({} if master_weights else {"unused": {"update"}})
    assert torch.equal(net.unused.weight, before)


def test_what_a_skipped_step_would_have_measured_is_absent() -> None:
    trainer, _, _ = trainer_of(diagnostic_interval=1, use_shadow=True)
    trainer.step()
    passes = trainer._passes
    real = passes.step_loss
    passes.step_loss = lambda x, y: real(x, y) * math.nan
    outcome = trainer.step()
    assert outcome.layers == [] and outcome.tensors == [] and "shadow_loss" not in outcome.record
    passes.step_loss = real
    assert "shadow_loss" in trainer.step().record


def config_of_a_large_step() -> TrainConfig:
    return CONFIG.altered(format="FP32", learning_rate=0.5, warmup_steps=0, schedule="constant", weight_decay=0.0)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_gradient_is_clipped_before_the_optimizer_moves_and_recorded_as_it_was(clip: float) -> None:
    seen: list[float] = []
    trainer = Trainer(config_of_a_large_step().altered(gradient_clip=clip), Net(), Data())
    real = trainer.optimizer.step

    def step() -> None:
        seen.append(math.sqrt(sum(float((p.grad**2).sum()) for p in trainer.model.parameters() if p.grad is not None)))
        real()

    trainer.optimizer.step = step  # type: ignore[method-assign,assignment]
    norm = trainer.step().record["gradient_norm"]
    assert norm > 0.01 and seen == [pytest.approx(clip or norm, rel=1e-2)]


class Doubling:
    """Doubles all weights at step 2, as a rollback or a shift would change them."""

    def __init__(self, parameters: list[Tensor], when: str) -> None:
        self._parameters, self._when = parameters, when

    @torch.no_grad()
    def _act(self, state: StepState, when: str) -> None:
        if state.step == 2 and when == self._when:
            for parameter in self._parameters:
                parameter.mul_(2)

    def on_gradients(self, state: StepState) -> None:
        self._act(state, "on_gradients")

    def after_step(self, state: StepState) -> None:
        self._act(state, "after_step")


@pytest.mark.parametrize(
    ("when", "noticed"), [("on_gradients", [2]), ("after_step", [2]), ("between", [3]), ("never", [])]
)
def test_whoever_changes_a_weight_besides_the_optimizer_is_noticed_in_that_step(when: str, noticed: list[int]) -> None:
    """What was changed before the optimizer moves must not be taken for its doing."""
    trainer, net, _ = trainer_of(master_weights=False)
    seen: list[int] = []
    trainer._diagnostics.weights_were_changed = lambda: seen.append(trainer.step_number)  # type: ignore[method-assign]
    trainer.interventions.append(Doubling(list(net.parameters()), when))  # type: ignore[arg-type]
    for step in range(1, 5):
        trainer.step()
        if when == "between" and step == 2:
            with torch.no_grad():
                net.first.bias.mul_(2)
    assert seen == noticed


def test_another_format_of_a_weight_is_noticed_too_where_no_weight_changes() -> None:
    trainer, _, _ = trainer_of()
    seen: list[int] = []
    trainer._diagnostics.weights_were_changed = lambda: seen.append(trainer.step_number)  # type: ignore[method-assign]
    trainer.step(), trainer.step()
    trainer.layers["second"].site("weight").set_format(FORMATS["E5M2"])
    trainer.step(), trainer.step()
    assert seen == [3]
