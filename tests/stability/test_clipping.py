"""The clipper in training: it changes the next weights where gradients overflow, and is bitwise absent elsewhere."""

import math

import pytest
import torch

from altgrad.formats import FORMATS
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import MICRO, SMALL, train, train_poisoned, weights

OVERFLOWING = MICRO.altered(format="E5M2", amax_factor=0.05, gradient_clip=0.0)


def test_the_clipper_acts_on_a_really_measured_overflow_and_changes_the_next_weights():
    plain, _ = train_poisoned(OVERFLOWING, 1)
    clipped, events = train_poisoned(OVERFLOWING.altered(enable_partition_clipping=True, partition_clip_base=0.01), 1)
    (clip,) = [event for event in events if event.kind == "clip"]
    assert clip.detail["overflow_rate"] >= 0.01
    assert clip.detail["limit"] == pytest.approx(0.01) and clip.detail["norm"] > clip.detail["limit"]
    assert not torch.equal(weights(plain.model), weights(clipped.model))


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
    without, _ = train_poisoned(config, 3)
    armed, events = train_poisoned(config.altered(enable_partition_clipping=True), 3)
    assert not [event for event in events if event.kind == "clip"]
    assert torch.equal(weights(without.model), weights(armed.model))


def test_what_overflows_among_activations_or_weights_clips_no_gradient():
    """Activations scaled beyond their range, gradients in BF16, which has float32's."""
    config = OVERFLOWING.altered(gradient_format="BF16", partition_clip_base=1e-45)
    without, _ = train_poisoned(config, 3)
    armed = Trainer(config.altered(enable_partition_clipping=True))
    outcomes = [armed.step() for _ in range(3)]
    assert min(outcome.record["overflow_rate"] for outcome in outcomes) > 0.1
    assert not [event for outcome in outcomes for event in outcome.events]
    assert torch.equal(weights(without.model), weights(armed.model))


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
        (clipper,) = [i for i in trainer.interventions if type(i).__name__ == "PartitionClipper"]
        assert clipper.limit() == 2.0 * FORMATS[name].max / 57344


@pytest.mark.parametrize("scaling", [{"scaling": "none", "format": "E0M7"}, {"scaling": "delayed", "format": "E4M3"}])
def test_overflow_can_be_measured_without_shifting_the_amax(scaling):
    trainer = Trainer(MICRO.altered(learning_rate=0.05, **scaling))
    assert max(trainer.step().record["overflow_rate"] for _ in range(12)) > 0
