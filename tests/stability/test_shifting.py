"""The emergency shift in training: what triggers it, what it changes, and that it is no arrival of an update."""

import math

import pytest
import torch

from altgrad.config.recipe import GEMM_SITES
from altgrad.format_relations import FALLBACKS
from altgrad.formats import find_format
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import MICRO, poison, train_poisoned, weights

FROZEN = MICRO.altered(
    format="E7M0", master_weights=False, enable_emergency_shift=True, max_steps=30, diagnostic_interval=5
)


def test_the_shift_waits_for_its_patience_of_non_finite_steps_and_then_changes_the_formats():
    config = MICRO.altered(format="E7M0", enable_emergency_shift=True, emergency_shift_nan_patience=3)
    trainer, events = train_poisoned(config, 3, 2, 3)
    assert not [event for event in events if event.kind == "format_shift"]
    trainer, events = train_poisoned(config, 4, 2, 3, 4)
    (shift,) = [event for event in events if event.kind == "format_shift"]
    assert (shift.detail["from"], shift.detail["to"], shift.step) == ("E7M0", "E5M2", 4)
    assert {layer.format_of(site).name for layer in trainer.layers.values() for site in GEMM_SITES} == {"E5M2"}
    assert trainer.config.format == "E7M0"  # the run stays filed under its own format
    unshifted, _ = train_poisoned(config.altered(enable_emergency_shift=False), 5, 2, 3, 4)
    trainer.step()
    assert not torch.equal(weights(trainer.model), weights(unshifted.model))


def test_a_shift_without_its_trigger_is_bitwise_absent():
    config = MICRO.altered(format="E4M3", max_steps=9)
    without, _ = train_poisoned(config, 9)
    armed, events = train_poisoned(config.altered(enable_emergency_shift=True), 9)
    assert not events and torch.equal(weights(without.model), weights(armed.model))


def test_a_frozen_run_without_masters_shifts_after_its_windows_and_not_at_step_one():
    _, events = train_poisoned(FROZEN, 30)
    shifts = [event for event in events if event.kind == "format_shift"]
    assert [event.step for event in shifts][:1] == [10] and "realised displacement" in shifts[0].detail["trigger"]


@pytest.mark.parametrize("changes", [{"update_rounding": "stochastic"}, {"master_weights": True}], ids=str)
def test_a_high_stall_rate_alone_never_shifts(changes):
    config = FROZEN.altered(**changes)
    trainer = Trainer(config)
    records = [trainer.step() for _ in range(30)]
    stalls = [r.record["stall_rate"] for r in records if "stall_rate" in r.record]
    assert min(stalls) > config.emergency_shift_stall_threshold
    assert not [event for r in records for event in r.events]


def test_every_fallback_exists_and_the_chain_ends():
    for name in FALLBACKS:
        seen = {name}
        while name in FALLBACKS:
            name = find_format(FALLBACKS[name]).name
            assert name not in seen
            seen.add(name)
        fmt = find_format(name)
        assert (fmt.exponent_bits, fmt.mantissa_bits) == (5, 2)


def test_with_nowhere_left_to_shift_the_run_says_so_once():
    config = MICRO.altered(format="E5M2", enable_emergency_shift=True, emergency_shift_nan_patience=2)
    _, events = train_poisoned(config, 9, 2, 3, 4, 5, 6, 7)
    assert [event.kind for event in events].count("shift_unavailable") == 1


def caller_doubles_the_weights(trainer: Trainer) -> None:
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(2.0)


def guard_rolls_back(trainer: Trainer) -> None:
    trainer.model.ln_f.weight.data[0] = math.nan


def run_shifts(trainer: Trainer) -> None:
    poison(trainer, trainer.step_number + 1)


@pytest.mark.parametrize("master_weights", [True, False], ids=["masters", "stored"])
@pytest.mark.parametrize("disturb", [caller_doubles_the_weights, guard_rolls_back, run_shifts])
def test_what_others_than_the_optimizer_do_to_the_weights_is_no_arrival(disturb, master_weights):
    """Two steps, then something moves weights or formats, then steps to the next measurement: these alone count."""
    config = MICRO.altered(
        format="E2M5", master_weights=master_weights, update_rounding="stochastic", diagnostic_interval=8, max_steps=16,
        enable_emergency_shift=True, emergency_shift_nan_patience=1 if disturb is run_shifts else 9,
    )  # fmt: skip
    trainer = Trainer(config)
    for _ in range(10):
        trainer.step()
    disturb(trainer)
    trainer.step()
    start = {name: layer.rounded_weight() for name, layer in trainer.layers.items()}
    intended = {name: torch.zeros_like(weight) for name, weight in start.items()}
    real = trainer.optimizer.step

    def step() -> None:
        before = {name: layer.weight.detach().clone() for name, layer in trainer.layers.items()}
        real()
        for name, layer in trainer.layers.items():
            intended[name] += layer.weight.detach() - before[name]

    if disturb is caller_doubles_the_weights:  # noticed before the optimizer moves: that step counts already
        return assert_displacement_is_bounded([trainer.step().record for _ in range(5)])
    trainer.optimizer.step = step
    records = [trainer.step().record for _ in range(5)]
    assert_displacement_is_bounded(records)
    change = {name: layer.rounded_weight() - start[name] for name, layer in trainer.layers.items()}
    products = sum(float((change[name].double() * intended[name].double()).sum()) for name in start)
    squares = sum(float((update.double() ** 2).sum()) for update in intended.values())
    assert records[-1]["realised_displacement"] == pytest.approx(products / squares, rel=1e-3)


def assert_displacement_is_bounded(records: list[dict[str, float]]) -> None:
    (found,) = [record["realised_displacement"] for record in records if "realised_displacement" in record]
    assert 0.3 < found < 1.7


def test_a_shift_at_a_tiny_learning_rate_arrives_nowhere():
    """Rounding to other formats moves weights by far more than any update intends."""
    config = FROZEN.altered(learning_rate=1e-9, emergency_shift_nan_patience=1, emergency_shift_stall_windows=9)
    trainer = Trainer(config)
    poison(trainer, 7)
    found = [outcome.record.get("realised_displacement") for outcome in (trainer.step() for _ in range(10))]
    assert [value for value in found if value is not None] == [0.0, 0.0]
    assert {layer.format_of("weight").name for layer in trainer.layers.values()} == {"E5M2"}
