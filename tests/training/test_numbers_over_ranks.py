"""What ranks read together in one step, by hand: loss, gradients, norm, counts of sites, metrics of the task."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.quantization.kernel.counters import COUNTERS
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.stability.protocol import StepState
from altgrad.training.step_counts import SiteCounts
from altgrad.training.step_numbers import OwnMetrics, StepNumbers
from tests.support.threaded_ranks import on_ranks

SITES = [("a", "weight"), ("a", "wgrad.gradient"), ("b", "activation"), ("c", "wgrad.weight"), ("d", "gradient")]


def row(**named: float) -> Tensor:
    return torch.tensor([float(named.get(name, 0)) for name in COUNTERS])


WEIGHT = row(nonzero=8, overflow=4, underflow=2, saturated=1, amax=3, scale=0.5, uses=1)
USED = (
    {
        SITES[0]: WEIGHT,
        SITES[1]: row(nonzero=16, overflow=1, underflow=3, saturated=5, amax=7, scale=2, uses=2),
        SITES[3]: row(nonzero=4, overflow=2, amax=1, scale=8, uses=1),
    },
    {
        SITES[1]: row(nonzero=32, overflow=2, underflow=1, saturated=4, amax=5, scale=4, uses=1),
        SITES[0]: WEIGHT,
        SITES[2]: row(nonzero=64, overflow=8, underflow=16, saturated=32, amax=9, scale=1, uses=3),
    },
)
TOGETHER = {  # every rank rounds all of a weight; of any other tensor its rows alone
    SITES[0]: WEIGHT,
    SITES[1]: row(nonzero=48, overflow=3, underflow=4, saturated=9, amax=7, scale=4, uses=3),
    SITES[2]: row(nonzero=64, overflow=8, underflow=16, saturated=32, amax=9, scale=1, uses=3),
    SITES[3]: row(nonzero=4, overflow=2, amax=1, scale=8, uses=1),
    SITES[4]: row(),
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
