"""Parts of a batch, of ranks and one after another, by hand: rows, masks, and what is read of them together."""

from __future__ import annotations

import itertools
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.quantization.kernel.ranks import Ranks
from altgrad.stability.protocol import StepState
from altgrad.training.step.step_counts import SiteCounts
from altgrad.training.step.step_numbers import OwnMetrics, StepNumbers
from altgrad.training.trainer import Trainer
from tests.support.rounding.rows_of_counts import row_of_counts
from tests.support.runs.small_runs import SMALL
from tests.support.runs.threaded_ranks import on_ranks

SITES = [("a", "weight"), ("a", "wgrad.gradient"), ("b", "activation"), ("c", "wgrad.weight"), ("d", "gradient")]


WEIGHT = row_of_counts(nonzero=8, overflow=4, underflow=2, saturated=1, amax=3, scale=0.5, uses=1)
USED = (
    {
        SITES[0]: WEIGHT,
        SITES[1]: row_of_counts(nonzero=16, overflow=1, underflow=3, saturated=5, amax=7, scale=2, uses=2),
        SITES[3]: row_of_counts(nonzero=4, overflow=2, amax=1, scale=8, uses=1),
    },
    {
        SITES[1]: row_of_counts(nonzero=32, overflow=2, underflow=1, saturated=4, amax=5, scale=4, uses=1),
        SITES[0]: WEIGHT,
        SITES[2]: row_of_counts(nonzero=64, overflow=8, underflow=16, saturated=32, amax=9, scale=1, uses=3),
    },
)
TOGETHER = {  # every rank rounds all of a weight; of any other tensor its rows alone
    SITES[0]: WEIGHT,
    SITES[1]: row_of_counts(nonzero=48, overflow=3, underflow=4, saturated=9, amax=7, scale=4, uses=3),
    SITES[2]: row_of_counts(nonzero=64, overflow=8, underflow=16, saturated=32, amax=9, scale=1, uses=3),
    SITES[3]: row_of_counts(nonzero=4, overflow=2, amax=1, scale=8, uses=1),
    SITES[4]: row_of_counts(),
}


def counts_of(ranks: Ranks) -> SiteCounts:
    found: Any = SimpleNamespace(counts=lambda: USED[ranks.rank], site_keys=lambda: SITES)
    return SiteCounts(found, ranks)


def test_counts_are_added_weights_are_not_and_of_amax_and_scale_the_largest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(ranks: Ranks) -> tuple[Any, SiteCounts]:
        counts = counts_of(ranks)
        return counts.read(torch.tensor((2.0, 4.0)[ranks.rank]), torch.tensor([5.0, 6.0])), counts

    for read, counts in on_ranks(2, work, monkeypatch):
        assert read == (3.0, [5.0, 6.0])
        assert {key: value.tolist() for key, value in counts.of_all_ranks.items()} == {
            key: value.tolist() for key, value in TOGETHER.items()
        }
        amax = {(one["layer"], one["site"]): (one["amax"], one["scale"]) for one in counts.rows(1, [], None)}
        assert amax == dict(zip(SITES[:4], [(3, 0.5), (7, 4), (9, 1), (1, 8)], strict=True))


def rank_of(trainer: Trainer, rank: int, size: int) -> Trainer:
    trainer.ranks = trainer._passes._ranks = Ranks(rank, size)
    trainer.quantized._shared = True
    return trainer


def test_each_rank_takes_its_rows_of_the_batch_part_by_part() -> None:
    trainer = Trainer(SMALL.altered(batch_size=12, accumulate=3))
    x, y = torch.arange(24).reshape(12, 2), torch.arange(12)
    for rank, first in ((0, 0), (1, 6)):
        parts = rank_of(trainer, rank, 2)._passes.parts_of((x, y)).parts
        assert [part[1].tolist() for part in parts] == [[at, at + 1] for at in range(first, first + 6, 2)]
        assert torch.equal(torch.cat([part[0] for part in parts]), x[first : first + 6])


def test_masks_follow_seed_step_rank_and_part_alone() -> None:
    def drawn(seed: int, step: int, rank: int, part: int) -> float:
        trainer = rank_of(trainers[seed], rank, 2)
        with trainer._random.borrowed():
            torch.rand(step)
            trainer._passes._seed_masks(step, part)
            return torch.rand(()).item()

    trainers = [Trainer(SMALL.altered(seed=seed)) for seed in range(2)]
    every = list(itertools.product(range(2), (3, 4), range(2), range(3)))
    first = [drawn(*words) for words in every]
    assert len(set(first)) == len(every) and [drawn(*words) for words in every] == first


class Square(nn.Module):
    """Predicts 1, 2, 3 and 2 for the rows of `Four`, and should predict 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        self.linear.weight.data = torch.tensor([[1.0, 2.0]])

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.linear(x).squeeze(1)
        return (found - y).square().mean(), {"predicted": found.mean()}


class Four:
    vocabulary = None
    asked = 0

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        self.asked = step
        return torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]), torch.zeros(4)

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return []

    def digest(self) -> str:
        return ""


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_parts_one_after_another_are_one_batch(pieces: int) -> None:
    """Losses 1, 4, 9 and 4; gradients 2 (1 + 3 + 4) / 4 and 2 (2 + 3) / 4."""
    at = {"batch_size": 4, "accumulate": pieces, "gradient_clip": 0, "learning_rate": 0.25, "warmup_steps": 0}
    config = SMALL.altered(format="FP32", schedule="constant", diagnostic_interval=1, skip_batches=2, **at)
    trainer = Trainer(config, Square(), data := Four())
    outcome = trainer.step()
    assert data.asked == 3 and trainer.validation_loss() is None
    assert trainer.model.linear.weight.grad.tolist() == [[4.0, 2.5]]
    assert outcome.own == {"predicted": 2.0}
    measured = {"step": 1, "loss": 4.5, "gradient_norm": pytest.approx(math.sqrt(22.25)), "learning_rate": 0.25}
    assert outcome.record | measured == outcome.record and outcome.record["tokens"] == 4


def test_a_layer_that_a_later_batch_does_not_reach_stays_where_it_is() -> None:
    class Turns(Square):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.Linear(2, 1)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return (self.linear(x) + (self.odd(x) if trainer.step_number % 2 else 0)).square().mean()

    trainer = Trainer(SMALL.altered(format="FP32", batch_size=4, warmup_steps=0, weight_decay=0.5), Turns(), Four())
    trainer.step()
    odd, linear = (layer.weight.detach().clone() for layer in (trainer.model.odd, trainer.model.linear))
    trainer.step()
    assert torch.equal(trainer.model.odd.weight, odd) and not torch.equal(trainer.model.linear.weight, linear)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_rank_s_gradient_is_its_share_of_that_of_the_mean_loss(pieces: int) -> None:
    trainer = Trainer(SMALL.altered(format="FP32", batch_size=4, accumulate=pieces), Square(), Four())
    parts = trainer._passes.parts_of(trainer.batches.training(1))
    assert float(rank_of(trainer, 1, 2)._passes.forward_backward(1, parts)) == 4.5
    assert trainer.model.linear.weight.grad.tolist() == [[2.0, 1.25]]


def test_each_part_rounds_with_noise_of_its_own_that_repeats() -> None:
    losses: list[float] = []

    class Wide(Square):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            losses.append((found := self.linear(x).square().mean()).item())
            return found

    trainer = Trainer(SMALL.altered(format="E4M3", rounding="stochastic"), Wide(), Four())
    divided = trainer._passes.parts_of(trainer.batches.training(1))
    divided.parts = [(torch.linspace(-1, 1, 64).expand(4, 64), torch.zeros(4))] * 3
    for _ in range(2):
        trainer._passes.forward_backward(0, divided)
    assert len(set(losses)) == 3 and losses[3:] == losses[:3]


def gradient(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


GRADIENTS = ((gradient(1, 2), None, None), (gradient(2, 2), gradient(0, 0, 12), None))
METRICS = ([{"right": 1.0, "wrong": 0.5}, {"right": 3.0, "wrong": 1.5}], [{"right": 4.0, "wrong": 2.0}])


def read_on(
    ranks: Ranks, gradients: Any = GRADIENTS, metrics: Any = METRICS
) -> tuple[StepState, OwnMetrics, list[nn.Parameter]]:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (2, 3, 1)]
    for parameter, value in zip(parameters, gradients[ranks.rank], strict=True):
        parameter.grad = value if value is None else value.clone()
    own, numbers = OwnMetrics(ranks), StepNumbers(parameters, counts_of(ranks), ranks)
    for part in metrics[ranks.rank]:
        own.add({name: torch.tensor(value) for name, value in part.items()})
    return numbers.read(7, torch.tensor((2.0, 4.0)[ranks.rank]), own), own, parameters


def test_ranks_read_the_gradient_of_the_whole_batch_its_norm_and_the_mean_of_their_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for state, own, parameters in on_ranks(2, read_on, monkeypatch):
        assert [None if p.grad is None else p.grad.tolist() for p in parameters] == [[3, 4], [0, 0, 12], None]
        assert (state.step, state.loss, state.gradient_norm, float(state.norm)) == (7, 3.0, 13.0, 13.0)
        assert own.values == {"right": 3.0, "wrong": 1.5}  # of (2, 4) and (1, 2)
        assert state.gradient_overflow == 3 / 48 and state.parameters == parameters
        rates = {"overflow_rate": 17 / 124, "underflow_rate": 22 / 124, "saturation_rate": 42 / 124}
        assert state.measured == {
            "step": 7,
            "loss": 3.0,
            "gradient_norm": 13.0,
            "non_finite_gradients": 0.0,
        } | {name: pytest.approx(value) for name, value in rates.items()}


def test_one_process_keeps_its_gradients_and_forgets_the_metrics_of_the_step_before() -> None:
    state, own, parameters = read_on(Ranks())
    assert [None if p.grad is None else p.grad.tolist() for p in parameters] == [[1, 2], None, None]
    assert state.gradient_norm == pytest.approx(math.sqrt(5)) and state.loss == 2.0
    assert own.values == {"right": 2.0, "wrong": 1.0} and own.take() == ([], None)


def test_a_metric_of_nothing_takes_no_gradient_away() -> None:
    _, own, parameters = read_on(Ranks(), metrics=[[{"right": 0.0}]])
    assert own.values == {"right": 0.0} and parameters[0].grad is not None


def test_bad_gradients_of_one_rank_are_a_share_of_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = ((gradient(1, math.inf), None, None), GRADIENTS[1])
    for state, _, _ in on_ranks(2, partial(read_on, gradients=spoilt), monkeypatch):
        assert state.measured["non_finite_gradients"] == 1 / 5 and not state.finite
