"""Each intervention changes the next weights when its trigger is met, says so, and is bitwise absent when it is not."""

import math

import pytest
import torch

from altgrad.config.recipe import GEMM_SITES
from altgrad.config.train_config import TrainConfig
from altgrad.format_relations import FALLBACKS
from altgrad.formats import FORMATS, find_format
from altgrad.training.trainer import Trainer
from tests.support.small_runs import MICRO, SMALL, multiply_loss, train


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]).clone()


def poison(trainer: Trainer, *steps: int, value: float = math.nan) -> None:
    """Make the loss's gradient non-finite at some steps, as a broken kernel or a bad batch would."""
    real = trainer._loss

    def loss(inputs, targets):
        return real(inputs, targets) * (value if trainer.step_number in steps else 1.0)

    trainer._loss = loss


def run(config: TrainConfig, steps: int, *poisoned: int) -> tuple[Trainer, list]:
    trainer = Trainer(config)
    poison(trainer, *poisoned)
    return trainer, [event for _ in range(steps) for event in trainer.step().events]


OVERFLOWING = MICRO.altered(format="E5M2", amax_factor=0.05, gradient_clip=0.0)


def test_the_clipper_acts_on_a_really_measured_overflow_and_changes_the_next_weights():
    plain, _ = run(OVERFLOWING, 1)
    clipped, events = run(OVERFLOWING.altered(enable_partition_clipping=True, partition_clip_base=0.01), 1)
    (clip,) = [event for event in events if event.kind == "clip"]
    assert clip.detail["overflow_rate"] >= 0.01
    assert clip.detail["limit"] == pytest.approx(0.01) and clip.detail["norm"] > clip.detail["limit"]
    assert not torch.equal(weights(plain), weights(clipped))


@pytest.mark.parametrize(
    "config",
    [
        OVERFLOWING.altered(partition_clip_overflow_threshold=1.0),  # overflow measured, but below the threshold
        OVERFLOWING.altered(amax_factor=1.0),  # no overflow
        OVERFLOWING.altered(partition_clip_base=1e6),  # overflow, but the norm is within the limit
    ],
    ids=["below threshold", "no overflow", "small norm"],
)
def test_a_clipper_without_its_trigger_is_bitwise_absent(config):
    without, _ = run(config, 3)
    armed, events = run(config.altered(enable_partition_clipping=True), 3)
    assert not [event for event in events if event.kind == "clip"]
    assert torch.equal(weights(without), weights(armed))


def test_what_overflows_among_activations_or_weights_clips_no_gradient():
    """Activations scaled beyond their range, gradients in BF16, which has float32's."""
    config = OVERFLOWING.altered(gradient_format="BF16", partition_clip_base=1e-45)
    without, _ = run(config, 3)
    armed = Trainer(config.altered(enable_partition_clipping=True))
    outcomes = [armed.step() for _ in range(3)]
    assert min(outcome.record["overflow_rate"] for outcome in outcomes) > 0.1
    assert not [event for outcome in outcomes for event in outcome.events]
    assert torch.equal(weights(without), weights(armed))


def test_the_rate_that_triggers_is_that_of_the_gradients_of_this_very_step():
    config = OVERFLOWING.altered(diagnostic_interval=1, enable_partition_clipping=True, partition_clip_base=1e-9)
    trainer = Trainer(config)
    for _ in range(3):
        outcome = trainer.step()
        rates = [row["overflow_rate"] for row in outcome.layers if row["site"] == "gradient"]
        (clip,) = [event for event in outcome.events if event.kind == "clip"]
        assert min(rates) < clip.detail["overflow_rate"] < max(rates)
        assert clip.detail["overflow_rate"] != outcome.record["overflow_rate"]


@pytest.mark.parametrize("seed", [1, 2])
def test_clipping_what_overflowed_saves_a_run_that_the_same_limit_at_every_step_does_not(seed):
    """Four steps of gradients that overflow an unscaled E5M2.  AdamW hardly feels how small all gradients are, unless
    its epsilon outweighs them: so the control learns, but late."""
    config = SMALL.altered(
        max_steps=60, learning_rate=3e-3, schedule="constant", warmup_steps=5, gradient_clip=0.0, eval_interval=60,
        eval_batches=4, diagnostic_interval=60, format="BF16", gradient_format="E5M2", scaling="none", seed=seed,
        partition_clip_base=1e-7,
    )  # fmt: skip
    bursts = {step: 1e10 for step in range(20, 60, 10)}

    def end(**changes) -> float:
        return train(config.altered(**changes), bursts)[1][-1].record["validation_loss"]

    triggered = end(enable_partition_clipping=True)
    undisturbed = train(config)[1][-1].record["validation_loss"]
    assert triggered == pytest.approx(undisturbed, abs=0.1)
    assert triggered < end() - 0.25
    assert triggered < end(gradient_clip=1e-7) - 0.5


@pytest.mark.parametrize("name", ["E2M5", "E5M2"])
def test_the_norm_after_the_clip_is_the_limit_of_the_narrowest_gradient_format(name):
    """E2M5 reaches 7.875, E5M2 57344; the other layers' E5M2 at base 1e-2 would allow 1e-2."""
    config = OVERFLOWING.altered(
        enable_partition_clipping=True, partition_clip_base=0.01, layer_formats={"lm_head": name}
    )
    trainer = Trainer(config)
    trainer.optimizer.step = lambda: None
    outcome = trainer.step()
    limit = 0.01 * {"E2M5": 7.875, "E5M2": 57344}[name] / 57344
    (clip,) = [event for event in outcome.events if event.kind == "clip"]
    assert clip.detail["limit"] == limit
    norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in trainer.model.parameters()))
    assert norm == pytest.approx(limit / (1 + 1e-6 / clip.detail["norm"]), rel=1e-5)


def test_the_clip_limit_is_relative_to_the_largest_value_of_e5m2():
    for name in ("E4M3", "E5M2", "E7M0"):
        trainer = Trainer(MICRO.altered(format=name, enable_partition_clipping=True, partition_clip_base=2.0))
        (clipper,) = [i for i in trainer.interventions if type(i).__name__ == "PartitionRelativeClipper"]
        assert clipper.limit() == 2.0 * FORMATS[name].max / 57344


@pytest.mark.parametrize("scaling", [{"scaling": "none", "format": "E0M7"}, {"scaling": "delayed", "format": "E4M3"}])
def test_overflow_can_be_measured_without_shifting_the_amax(scaling):
    trainer = Trainer(MICRO.altered(learning_rate=0.05, **scaling))
    assert max(trainer.step().record["overflow_rate"] for _ in range(12)) > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_touches_neither_weights_nor_moments(value):
    trainer = Trainer(MICRO)
    poison(trainer, 3, value=value)
    trainer.step(), trainer.step()
    before, moments = weights(trainer), {k: v["exp_avg"].clone() for k, v in trainer.optimizer.state.items()}
    outcome = trainer.step()
    assert [event.kind for event in outcome.events] == ["skip"]
    assert outcome.record["non_finite_gradients"] > 0 and not math.isfinite(outcome.record["loss"])
    assert torch.equal(before, weights(trainer))
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
    assert torch.isfinite(weights(trainer)).all() and math.isfinite(trainer.step().record["loss"])


def test_poisoned_moments_are_restored_too():
    trainer = Trainer(MICRO)
    for _ in range(5):
        trainer.step()
    next(iter(trainer.optimizer.state.values()))["exp_avg"].fill_(math.nan)
    kinds = [event.kind for _ in range(3) for event in trainer.step().events]
    assert "rollback" in kinds
    assert math.isfinite(trainer.step().record["loss"]) and torch.isfinite(weights(trainer)).all()


def test_the_shift_waits_for_its_patience_of_non_finite_steps_and_then_changes_the_formats():
    config = MICRO.altered(format="E7M0", enable_emergency_shift=True, emergency_shift_nan_patience=3)
    trainer, events = run(config, 3, 2, 3)
    assert not [event for event in events if event.kind == "format_shift"]
    trainer, events = run(config, 4, 2, 3, 4)
    (shift,) = [event for event in events if event.kind == "format_shift"]
    assert (shift.detail["from"], shift.detail["to"], shift.step) == ("E7M0", "E5M2", 4)
    assert {layer.format_of(site).name for layer in trainer.layers.values() for site in GEMM_SITES} == {"E5M2"}
    assert trainer.config.format == "E7M0"  # the run stays filed under its own format
    unshifted, _ = run(config.altered(enable_emergency_shift=False), 5, 2, 3, 4)
    trainer.step()
    assert not torch.equal(weights(trainer), weights(unshifted))


def test_a_shift_without_its_trigger_is_bitwise_absent():
    config = MICRO.altered(format="E4M3", max_steps=9)
    without, _ = run(config, 9)
    armed, events = run(config.altered(enable_emergency_shift=True), 9)
    assert not events and torch.equal(weights(without), weights(armed))


FROZEN = MICRO.altered(
    format="E7M0", master_weights=False, enable_emergency_shift=True, max_steps=30, diagnostic_interval=5
)


def test_a_frozen_run_without_masters_shifts_after_its_windows_and_not_at_step_one():
    _, events = run(FROZEN, 30)
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
    _, events = run(config, 9, 2, 3, 4, 5, 6, 7)
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
    guard_rolls_back(trainer)
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
