"""A restored trainer repeats the undisturbed one bit for bit, whatever had happened, and needs all of its state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from altgrad.training import TrainConfig
from tests.servers.polling import PATIENCE
from tests.support.runs.restored_runs import (
    ECO,
    EVERYTHING,
    KAHAN,
    MASTERS,
    SCHEDULED,
    go_on,
    trained,
    trainer_of,
)

pytestmark = pytest.mark.long

AROUND_WHAT_HAPPENS = (0, 4, 5, 11, 12, 13, 19, 20)  # broken batches, rollbacks, the shift
ANY = (*AROUND_WHAT_HAPPENS, 1, 3, 8, 15, 18, 23)


@pytest.fixture(
    scope="module",
    params=[EVERYTHING, MASTERS, KAHAN, ECO, SCHEDULED],
    ids=["stored", "masters", "kahan", "eco", "scheduled"],
)
def undisturbed(request) -> tuple[TrainConfig, list[dict[str, Any]], Callable[[int], str]]:
    return request.param, *trained(request.param)


def test_everything_that_can_happen_to_a_run_happens_to_this_one(undisturbed):
    _, _, after = undisturbed
    for kind in ("skip", "rollback", "format_shift", "clip"):
        assert f"kind='{kind}'" in after(0), kind
    assert "'to_step': 3" in after(0) and "'to_step': 18" in after(0)


def test_a_run_restored_at_any_step_repeats_all_that_follows_bit_for_bit(undisturbed):
    config, states, after = undisturbed
    for step in ANY if config is EVERYTHING else AROUND_WHAT_HAPPENS[1::2]:
        assert go_on(config, states[step]) == after(step), step


def entries(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of what a state dict holds, down to what belongs together: all weights, all moments, all of one counter."""
    inner = state.items() if isinstance(state, dict) else enumerate(state) if path == ("interventions",) else ()
    if (
        not inner
        or path in (("model",), ("optimizer",))
        or len(path) == 3
        or (path[:1] == ("quantized",) and len(path) == 2)
    ):
        yield path
        return
    for key, value in inner:
        yield from entries(value, (*path, key))


def replaced(state: dict[str, Any], path: tuple[Any, ...], fresh: Any) -> dict[str, Any]:
    """The state with one entry as a new run has it."""
    changed = copy.deepcopy(state)
    place: Any = changed
    for key in path[:-1]:
        place, fresh = place[key], fresh[key]
    place[path[-1]] = fresh[path[-1]]
    return changed


def test_each_entry_of_the_state_is_needed():
    """For each there is a step at which a run that lacks it goes another way; with masters or without."""
    needless: dict[tuple[Any, ...], int] = {}
    for config in (EVERYTHING, MASTERS, KAHAN):
        states, after = trained(config)
        for path in entries(states[0]):
            if (
                path in (("elapsed_seconds",), ("ahead",), ("interventions", 2), ("quantized", "histories"))
                or needless.get(path) == 0
            ):
                continue  # a time; the clipper, which has no state; for the others see below
            same = all(go_on(config, replaced(states[k], path, states[0])) == after(k) for k in (19, 12, 10, 7))
            needless[path] = int(same)
    assert [path for path, same in needless.items() if same] == []
    assert len(needless) >= 12


def test_running_statistics_are_needed():
    states, after = trained(EVERYTHING)
    for part in ("running_mean", "running_var"):
        state = copy.deepcopy(states[8])
        names = [name for name in state["model"] if part in name]
        for name in names:
            state["model"][name] = states[0]["model"][name]
        assert names and go_on(EVERYTHING, state) != after(8), part


def test_the_amax_histories_are_needed():
    """An empty one gives this run's powers of two by chance; one of other magnitudes does not."""
    states, after = trained(EVERYTHING)
    state = copy.deepcopy(states[8])
    for history in state["quantized"]["histories"].values():
        history.mul_(64)
    assert go_on(EVERYTHING, state) != after(8)


def test_the_place_in_the_data_is_needed():
    """A run that took weights from another one may be ahead of its steps there; these runs are not."""
    states, after = trained(MASTERS)
    assert states[8]["ahead"] == 0
    assert go_on(MASTERS, copy.deepcopy(states[8]) | {"ahead": 3}) != after(8)


def test_the_time_of_a_run_goes_on_where_it_was():
    trainer = trainer_of(EVERYTHING)
    state = trainer.state_dict() | {"elapsed_seconds": 1000.0, "tokens": 77}
    trainer.load_state_dict(state)
    record = trainer.step().record
    assert 1000 < record["elapsed_seconds"] < 1000 + PATIENCE and record["tokens"] == 77 + 16
