"""The rescue ladder: what each rung does to the next weights, in which order, and that it is absent without trouble."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from altgrad.config.interventions import intervention_fields
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.events import Event
from altgrad.stability.ladder import RescueLadder
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL, multiply_loss, untimed, weights

CALM = SMALL.altered(format="E4M3", max_steps=40, diagnostic_interval=3)
BAD = 8  # the first step whose loss is ten times too large


def armed(*rungs: str, **fields: object) -> TrainConfig:
    return CALM.altered(enable_rescue_ladder=True, rescue_rungs=list(rungs), rescue_window=4, **fields)


def spiked(config: TrainConfig, until: int, last: int = 99, factor: float = 10.0) -> Trainer:
    """A run up to a step, in which the losses of steps `BAD` to `last` are multiplied."""
    trainer = Trainer(config)
    multiply_loss(trainer, dict.fromkeys(range(BAD, last + 1), factor))
    for _ in range(until):
        trainer.step()
    return trainer


def events(config: TrainConfig, steps: int, last: int = 99, factor: float = 10.0) -> list[Event]:
    trainer = spiked(config, 0, last, factor)
    return [event for _ in range(steps) for event in trainer.step().events]


@pytest.fixture(scope="module")
def before() -> torch.Tensor:
    return weights(spiked(CALM, BAD - 1).model)


def test_without_trouble_it_is_bitwise_absent():
    for config in (armed("skip", "rate", "rollback", "shift"), CALM.altered(enable_rescue_ladder=True)):
        trainer, plain = Trainer(config), Trainer(CALM)
        for _ in range(9):
            one, other = trainer.step(), plain.step()
            assert untimed(one.record) == untimed(other.record) and not one.events
        assert torch.equal(weights(trainer.model), weights(plain.model))


def test_skip_leaves_the_weights_of_a_bad_batch(before):
    assert torch.equal(weights(spiked(armed("skip"), BAD).model), before)
    assert torch.equal(weights(spiked(armed("skip"), BAD + 2).model), before)  # each bad batch of the window
    assert not torch.equal(weights(spiked(CALM, BAD).model), before)


def test_rate_cuts_to_a_tenth_and_warms_up_over_five_windows():
    trainer, plain = spiked(armed("rate"), BAD - 1, last=BAD), spiked(CALM, BAD - 1, last=BAD)
    for step in range(BAD, BAD + 23):
        rate, usual = (one.step().record["learning_rate"] for one in (trainer, plain))
        assert rate == pytest.approx(usual * min(1.0, 0.1 + 0.9 * (step - BAD) / 20), rel=1e-12)
    alone = spiked(CALM, BAD - 1, last=BAD)
    real = Trainer._update

    def tenth(self, state, outcome, *, measuring):  # the same step by hand
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.1
        real(self, state, outcome, measuring=measuring)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_update", tenth)
        alone.step()
    assert torch.equal(weights(alone.model), weights(spiked(armed("rate"), BAD, last=BAD).model))


def test_rollback_goes_back_to_the_last_healthy_weights_and_their_moments():
    at_six = spiked(CALM, 6)
    back = spiked(armed("rollback"), BAD)
    assert torch.equal(weights(back.model), weights(at_six.model))
    for group in zip(back.optimizer.state.values(), at_six.optimizer.state.values(), strict=True):
        assert all(torch.equal(group[0][key], group[1][key]) for key in group[0])
    later = events(armed("rollback", rescue_budget=3), 25)
    assert [(e.step, e.detail["to_step"]) for e in later if e.kind == "rollback"] == [(8, 6), (12, 6), (16, 6)]


def test_shift_changes_every_scaled_site_to_the_chosen_format():
    for wanted in ("BF16", "E5M2"):
        trainer = spiked(armed("shift", rescue_shift_format=wanted), BAD)
        assert {site.format.name for layer in trainer.layers.values() for site in layer.sites.values()} == {wanted}
        stored = spiked(armed("shift", rescue_shift_format=wanted, master_weights=False), BAD)
        for layer in stored.layers.values():
            assert torch.equal(layer.rounded_weight(), layer.weight)
    with pytest.raises(ConfigError, match="rescue_rungs with shift"):
        armed("shift", format="BF16", gemm_dtype="bfloat16")


def test_rungs_act_in_order_a_window_apart_until_the_budget_is_spent():
    found = events(armed("skip", "rate", "rollback", "shift", rescue_budget=5), 34)
    acts = [(e.step, e.kind) for e in found if e.kind != "skip" or e.step in (BAD, BAD + 4)]
    assert acts == [(8, "skip"), (12, "rate_cut"), (16, "rollback"), (20, "format_shift"), (24, "rate_cut")]
    again = events(armed("skip", "rate"), 30, last=BAD)  # one bad batch: the second trouble begins at the foot again
    assert [(e.step, e.kind) for e in again] == [(8, "skip")]


def driven_by_the_rate(
    config: TrainConfig, steps: int, most: float, last: int = BAD
) -> tuple[list[Event], list[float]]:
    """(events, rates) of a run whose loss is ten times too large after each step with more than `most` of its rate.

    It is so too from step `BAD` to `last`.
    """
    trainer, factors, found, rates = Trainer(config), dict.fromkeys(range(BAD, last + 1), 10.0), [], []
    multiply_loss(trainer, factors)
    for step in range(1, steps + 1):
        outcome = trainer.step()
        found += outcome.events
        rates.append(outcome.record["learning_rate"] / config.learning_rate)
        if step >= BAD and rates[-1] > most:
            factors[step + 1] = 10.0
    return found, rates


def test_a_cut_that_did_not_last_comes_back_to_a_tenth_and_a_rollback_begins_it_anew():
    constant = {"schedule": "constant", "warmup_steps": 1}
    found, rates = driven_by_the_rate(armed("rate", **constant), 40, most=0.3)
    cuts = [(e.step, e.detail["back_to"]) for e in found if e.kind == "rate_cut"]
    assert cuts[0] == (BAD, 1.0) and [back for _, back in cuts] == [1.0, 0.1] and max(rates[-10:]) == pytest.approx(0.1)
    found, rates = driven_by_the_rate(armed("rate", "rollback", **constant), 40, most=0.3, last=BAD + 4)
    assert [e.step for e in found if e.kind == "rollback"] == [BAD + 4]
    assert rates[BAD + 3] == pytest.approx(0.1) and max(rates[-10:]) == pytest.approx(0.1)


def test_after_the_last_rung_it_goes_on_with_the_first_that_can_act():
    found = events(armed("skip", "rate", "shift", rescue_budget=5), 34)
    acts = [(e.step, e.kind) for e in found if e.kind != "skip" or e.step == BAD]
    assert acts == [(8, "skip"), (12, "rate_cut"), (16, "format_shift"), (20, "rate_cut"), (24, "rate_cut")]
    assert [e.kind for e in events(armed("shift", rescue_budget=2), 20)] == ["format_shift", "shift_unavailable"]


def test_a_nan_is_trouble_too_and_every_rung_acts_before_the_verdict_of_five_such_steps():
    found = events(armed("rate", "rollback"), 14, last=13, factor=math.nan)
    rungs = [(8, "rate_cut"), (10, "rollback"), (12, "rate_cut")]  # 2 of the 4 steps before the verdict each
    assert [(e.step, e.kind) for e in found if e.kind != "skip"] == rungs
    assert [e.step for e in found if e.kind == "skip"] == [8, 9, 10, 11, 12, 13]
    patient = events(armed("rate", "rollback", non_finite_patience=20), 14, last=13, factor=math.nan)
    assert [(e.step, e.kind) for e in patient if e.kind != "skip"] == [(8, "rate_cut"), (12, "rollback")]


@pytest.mark.parametrize(
    ("patience", "rungs", "window", "steps"),
    [
        (5, 1, 4, 4),
        (5, 2, 4, 2),  # two rungs before the fifth step of NaN
        (6, 2, 4, 2),
        (7, 2, 4, 3),
        (9, 2, 4, 4),
        (20, 2, 4, 4),  # a window, if there is as much time
        (20, 2, 1, 1),
        (5, 3, 4, 1),
        (3, 3, 4, 1),  # no time for all: one step each
        (1, 2, 4, 1),
    ],
)
def test_the_time_to_help_of_a_nan_lets_all_rungs_act_before_the_verdict(patience, rungs, window, steps):
    config = armed(*["rate", "rollback", "shift"][:rungs], non_finite_patience=patience).altered(rescue_window=window)
    found = events(config, BAD + 5, factor=math.nan)
    acts = sorted({event.step for event in found if event.kind != "skip" and event.step >= BAD})
    assert acts == list(range(BAD, BAD + 6, steps))
    finite = sorted({event.step for event in events(config, BAD + 5) if event.kind != "skip"})
    assert finite == list(range(BAD, BAD + 6, window))


def rescues(trainer: Trainer, steps: int) -> dict[int, float]:
    """Step -> the metric `rescue_acts`, where the record has it."""
    records = [trainer.step().record for _ in range(steps)]
    return {int(record["step"]): record["rescue_acts"] for record in records if "rescue_acts" in record}


def test_a_cut_a_rollback_and_a_shift_make_the_run_another_one_but_no_skip_no_clip_and_nothing_of_the_guard():
    every = armed("skip", "rate", "rollback", "shift")
    assert rescues(spiked(every, 0), 20) == {12: 1.0, 16: 1.0, 20: 1.0}  # the first rung, at step 8, was a skip
    assert rescues(spiked(armed("shift"), 0), 12) == {8: 1.0}  # the shift of step 12 finds nothing to shift
    assert rescues(spiked(CALM, 0, factor=math.nan), 12) == {}
    poisoned = Trainer(CALM)
    for _ in range(5):
        poisoned.step()
    poisoned.model.ln_f.weight.data[0] = math.nan
    assert rescues(poisoned, 3) == {}  # the guard has gone back
    shift = CALM.altered(enable_emergency_shift=True)
    assert rescues(spiked(shift, 0, factor=math.nan), 10) == {10: 1.0}
    assert rescues(spiked(shift.altered(format="E5M2"), 0, factor=math.nan), 12) == {}  # there is no safer format
    clipping = CALM.altered(enable_partition_clipping=True, partition_clip_base=0.01, amax_factor=0.05)
    clipped = Trainer(clipping).step()
    assert [event.kind for event in clipped.events] == ["clip"] and "rescue_acts" not in clipped.record


def test_a_restored_run_climbs_on_bit_for_bit():
    config = armed("skip", "rate", "rollback", "shift", scaling="delayed", master_weights=False)
    straight, states, seen = spiked(config, 0), [], []
    for _ in range(24):
        states.append(copy.deepcopy(straight.state_dict()))
        outcome = straight.step()
        seen.append((untimed(outcome.record), outcome.events))
    for step in (9, 13, 17):
        trainer = spiked(config, 0)
        trainer.load_state_dict(states[step])
        found = [trainer.step() for _ in range(step, 24)]
        assert [(untimed(o.record), o.events) for o in found] == seen[step:], step
        assert torch.equal(weights(trainer.model), weights(straight.model))


def test_each_rung_is_an_intervention_by_name():
    for name, rungs in (("skip", ["skip"]), ("rate", ["rate"]), ("rollback", ["rollback"]), ("bf16", ["shift"])):
        assert intervention_fields(name) == {"enable_rescue_ladder": True, "rescue_rungs": rungs}
    assert TrainConfig(**intervention_fields("ladder")).rescue_rungs == ["skip", "rate", "rollback", "shift"]


def test_a_rollback_to_disk_goes_back_to_before_the_trouble_whatever_snapshot_was_taken_since():
    """Trouble from step 8 on; the snapshot of step 15 was taken in a calm of it, and goes back to nothing healthy."""
    trainer = Trainer(armed("rollback").altered(rescue_window=10))
    multiply_loss(trainer, dict.fromkeys((BAD, 10, 18, 24, 28), 10.0))
    (ladder,) = (one for one in trainer.interventions if isinstance(one, RescueLadder))
    asked: list[int] = []
    ladder.rewind = asked.append  # type: ignore[assignment]  # None: there is no checkpoint
    found = [event for _ in range(28) for event in trainer.step().events]
    assert [(event.step, event.kind, event.detail["to_step"]) for event in found] == [
        (8, "rollback", 6), (18, "rollback", 15), (28, "rollback", 27)
    ]  # fmt: skip
    assert asked == [6, 8]
