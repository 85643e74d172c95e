"""The guard, step by step and by hand: what is copied when, what comes back, and what a restored one remembers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.stability.guard import NonFiniteGuard
from altgrad.stability.protocol import StepState
from tests.references.step_states import state_of

INTERVAL = 2
NAN, INF = math.nan, math.inf


class Guarded:
    """A layer of two parameters, an amax history and a mask of -inf under one guard; one parameter gets no gradient."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer, self.unused = nn.Linear(2, 1, bias=False), nn.Parameter(torch.ones(3))
        self.history, self.mask = torch.ones(4), torch.tensor([-INF, 0.0])
        self.optimizer = torch.optim.AdamW([self.layer.weight, self.unused], lr=0.1)
        self.guard = NonFiniteGuard(self.optimizer, INTERVAL, [self.history, self.mask])
        self.at = 0

    def step(self, loss: float = 1.0, norm: float = 1.0) -> StepState:
        """One step, which the guard may skip; a finite one moves weights, moments and the history."""
        self.at += 1
        state = state_of(self.at, loss, norm)
        self.guard.on_gradients(state)
        if not state.skip:
            self.layer.weight.grad = torch.full((1, 2), float(self.at))
            self.optimizer.step()
            self.history += self.at
        self.guard.after_step(state)
        return state

    def moments(self) -> dict[str, Tensor]:
        return self.optimizer.state.get(self.layer.weight, {})

    def seen(self) -> dict[str, Any]:
        """A copy of everything that must come back."""
        found = {key: value.clone() for key, value in self.moments().items()}
        return found | {"weight": self.layer.weight.detach().clone(), "history": self.history.clone()}

    def poison(self, what: str) -> None:
        with torch.no_grad():
            {"weight": self.layer.weight, "unused": self.unused, "history": self.history, **self.moments()}[what].fill_(
                NAN
            )


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def kinds(state: StepState) -> list[str]:
    return [event.kind for event in state.events]


@pytest.mark.parametrize("what", ["weight", "unused", "history", "exp_avg", "exp_avg_sq"])
def test_whatever_is_poisoned_everything_comes_back_from_the_last_multiple_of_the_interval(what: str) -> None:
    run = Guarded()
    for _ in range(4):
        run.step()
    kept = run.seen()
    run.step()
    run.poison(what)
    state = run.step(loss=NAN)
    assert state.skip and kinds(state) == ["skip", "rollback"] and state.events[1].detail == {"to_step": 4}
    assert equal(run.seen(), kept) and bool(torch.isfinite(run.unused).all())


@pytest.mark.parametrize("what", ["weight", "unused", "history", "exp_avg"])
def test_poison_that_no_loss_shows_is_found_before_a_snapshot_is_taken(what: str) -> None:
    run = Guarded()
    run.step()
    run.step()
    kept = run.seen()
    run.step()
    run.poison(what)
    assert kinds(run.step()) == ["rollback"] and equal(run.seen(), kept)


def test_a_rolled_back_run_that_trains_on_can_be_rolled_back_again_to_the_same_place() -> None:
    """What was given back must not be the snapshot itself, which the next steps would change."""
    run = Guarded()
    run.step()
    run.step()
    kept = run.seen()
    for _ in range(3):
        run.step()
        run.poison("weight")
        run.step(norm=INF)
        assert equal(run.seen(), kept)
        run.at = 2


def test_before_the_first_snapshot_a_run_goes_back_to_its_start_without_moments() -> None:
    run = Guarded()
    kept = run.seen()
    run.step()
    run.poison("exp_avg")
    state = run.step(loss=INF)
    assert state.events[1].detail == {"to_step": 0}
    assert equal(run.seen(), kept) and not run.optimizer.state


def test_a_step_that_is_not_finite_moves_nothing_and_is_no_snapshot() -> None:
    run = Guarded()
    for _ in range(3):
        run.step()
    before = run.seen()
    state = run.step(loss=-INF, norm=2.5)  # step 4, of which there would be one
    assert state.skip and equal(run.seen(), before)
    assert [(e.kind, e.step, e.detail) for e in state.events] == [("skip", 4, {"loss": "-inf", "gradient_norm": 2.5})]
    run.step()
    run.poison("weight")
    assert run.step(norm=NAN).events[1].detail == {"to_step": 2}


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (1.0, NAN), (1.0, INF)])
def test_loss_and_norm_must_both_be_finite(loss: float, norm: float) -> None:
    (event,) = Guarded().step(loss, norm).events
    given = {"loss": loss, "gradient_norm": norm}
    assert event.detail == {name: value if math.isfinite(value) else str(value) for name, value in given.items()}


def test_good_steps_leave_no_event_and_an_attention_mask_of_inf_is_none() -> None:
    run = Guarded()
    assert [event for _ in range(5) for event in run.step().events] == []
    assert run.mask.tolist() == [-INF, 0.0]


def test_without_companions_weights_and_moments_are_guarded_all_the_same() -> None:
    weight = nn.Parameter(torch.ones(2))
    guard = NonFiniteGuard(torch.optim.SGD([weight], lr=1.0), 1)
    with torch.no_grad():
        weight.fill_(NAN)
    guard.after_step(state_of(1))
    assert weight.tolist() == [1.0, 1.0]


def test_counts_of_an_optimizer_that_are_no_tensors_and_whole_numbers_come_back_too() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.state[weight] = {"steps": 3, "seen": torch.tensor([2])}
    guard = NonFiniteGuard(optimizer, 5)
    optimizer.state[weight]["steps"], optimizer.state[weight]["seen"] = 7, torch.tensor([9])
    with torch.no_grad():
        weight.fill_(NAN)
    guard.on_gradients(state_of(4, NAN))
    assert optimizer.state[weight] == {"steps": 3, "seen": torch.tensor([2])}
    restored = NonFiniteGuard(optimizer, 5)
    restored.load_state_dict(guard.state_dict())
    assert restored.state_dict()["moments"] == [{"steps": 3, "seen": torch.tensor([2])}]


def test_a_restored_guard_goes_back_to_where_the_first_would_have() -> None:
    run, restored = Guarded(), Guarded()
    run.step()
    run.step()
    kept = run.seen()
    restored.guard.load_state_dict(run.guard.state_dict())
    restored.step()
    restored.poison("weight")
    restored.at = 6
    state = restored.step(loss=NAN)
    assert equal(restored.seen(), kept) and state.events[1].detail == {"to_step": 2}


def test_what_is_restored_lies_where_the_model_lies() -> None:
    """The snapshot comes from a checkpoint on the CPU; the meta device stands for a GPU."""
    weight, history = nn.Parameter(torch.ones(2, device="meta")), torch.ones(3)
    guard = NonFiniteGuard(torch.optim.SGD([weight], lr=1.0), 1, [history])
    kept = {"step": 5, "parameters": [torch.ones(2)], "companions": [torch.ones(3)], "moments": [{"m": torch.ones(2)}]}
    guard.load_state_dict(kept)
    state = guard.state_dict()
    assert state["step"] == 5 and state["moments"][0]["m"].device.type == "meta"
    assert state["parameters"][0].device.type == "meta" and state["companions"][0].device.type == "cpu"


@pytest.mark.parametrize("part", ["parameters", "companions", "moments"])
def test_the_snapshot_of_another_model_is_refused(part: str) -> None:
    run = Guarded()
    state = run.guard.state_dict()
    with pytest.raises(ValueError):
        run.guard.load_state_dict(state | {part: state[part][:-1]})
