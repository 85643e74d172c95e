"""What a shift of the ladder changes: chosen layers and operands, any format; and that it frees a run that is stuck."""

from __future__ import annotations

import copy

import pytest
import torch

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.formats import find_format
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL, multiply_loss, untimed, weights

CALM = SMALL.altered(format="E4M3", max_steps=20)
BAD = 6


def shifting(config: TrainConfig = CALM, **fields: object) -> TrainConfig:
    return config.altered(enable_rescue_ladder=True, rescue_rungs=["shift"], rescue_window=4, **fields)


def shifted(config: TrainConfig) -> tuple[dict[str, str], list[dict[str, object]]]:
    """(format of each rounding, details of the shifts) after a run whose loss jumps."""
    trainer = Trainer(config)
    multiply_loss(trainer, {BAD: 10.0})
    events = [event for _ in range(BAD) for event in trainer.step().events]
    formats = {f"{n}.{s}": site.format.name for n, layer in trainer.layers.items() for s, site in layer.sites.items()}
    return formats, [dict(event.detail) for event in events if event.kind == "format_shift"]


def test_a_shift_reaches_the_layers_of_its_glob_and_the_operands_that_are_named():
    formats, (detail,) = shifted(shifting(rescue_shift_format="E5M2", rescue_shift_layers="h.0.mlp.*"))
    assert {name for name, fmt in formats.items() if fmt == "E5M2"} == {
        f"h.0.mlp.{layer}.{site}" for layer in ("up", "down") for site in ("weight", "activation", "gradient")
    }
    assert (detail["layers"], detail["sites"], detail["to"]) == ("h.0.mlp.*", 6, "E5M2") and "operands" not in detail
    formats, (detail,) = shifted(shifting(rescue_shift_operands=["gradient"]))
    assert {name.rpartition(".")[2] for name, fmt in formats.items() if fmt == "BF16"} == {"gradient"}
    assert detail["operands"] == ["gradient"] and "layers" not in detail


@pytest.mark.parametrize("words", [["wgrad"], ["wgrad.gradient"], ["dgrad.gradient", "wgrad.activation"]], ids=str)
def test_operands_with_a_rounding_of_their_own_are_shifted_alone(words):
    """Blocks lie along what each GEMM contracts, so that each operand is rounded for itself."""
    config = shifting(rescue_shift_operands=words, scale_granularity="1x32")
    named = {"wgrad": {"wgrad.gradient", "wgrad.activation"}}
    expected = set().union(*(named.get(word, {word}) for word in words))
    formats, _ = shifted(config)
    assert {name for name, fmt in formats.items() if fmt == "BF16" and name.startswith("h.0.mlp.up")} == {
        f"h.0.mlp.up.{operand}" for operand in expected
    }


def test_a_custom_format_is_rounded_to_from_then_on():
    config = shifting(rescue_shift_format="E3M2b5")
    trainer = Trainer(config)
    multiply_loss(trainer, {BAD: 10.0})
    for _ in range(BAD):
        trainer.step()
    grid = find_format("E3M2b5")
    layer = trainer.layers["h.0.mlp.up"]
    rounded, scale, _ = layer.rounded_weight_and_scale()
    values = (rounded / scale).abs()
    assert len(values.unique()) <= 32 and float(values.max()) <= grid.max < 2 * float(values.max())


@pytest.mark.parametrize(
    ("old", "rule", "wanted", "expected"),
    [
        ("E4M3", "format", "BF16", "saturate"),  # E4M3 saturates, and BF16 alone would give infinity
        ("E5M2", "saturate", "BF16", "saturate"),
        ("E5M2", "inf", "BF16", "inf"),
        ("E5M2", "inf", "E4M3", "saturate"),  # which has no infinity
        ("E5M2", "saturate", "E4M3", "saturate"),
        ("E4M3", "format", "E5M2", "saturate"),
    ],
)
def test_what_overflowed_to_infinity_still_does_if_the_new_format_has_one(old, rule, wanted, expected):
    trainer = Trainer(shifting(CALM.altered(format=old, overflow=rule), rescue_shift_format=wanted))
    multiply_loss(trainer, {BAD: 10.0})
    for _ in range(BAD):
        trainer.step()
    found = {(s.format.name, s.format.overflow) for layer in trainer.layers.values() for s in layer.sites.values()}
    assert found == {(wanted, expected)}


def test_an_operand_that_shares_its_rounding_is_refused_in_one_line_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"dgrad.gradient of h.0.attn.qkv shares its rounding with wgrad.gradient"
    ) as e:
        Trainer(shifting(rescue_shift_operands=["dgrad.gradient"]))
    assert "\n" not in str(e.value) and "gemms={dgrad: {gradient: {axis: last}}}" in str(e.value)
    alone = shifting(rescue_shift_operands=["dgrad.gradient"], gemms={"dgrad": {"gradient": {"axis": "last"}}})
    formats, _ = shifted(alone)
    assert formats["lm_head.dgrad.gradient"] == "BF16" and formats["lm_head.wgrad.gradient"] == "E4M3"
    one, other = Trainer(alone), Trainer(CALM)
    for _ in range(3):
        assert untimed(one.step().record)["loss"] == untimed(other.step().record)["loss"]
    assert torch.equal(weights(one.model), weights(other.model))
    with pytest.raises(ValueError, match=r"rescue_shift_layers='h.9.\*' matches no layer; layers: h.0.attn.qkv"):
        Trainer(shifting(rescue_shift_layers="h.9.*"))
    with pytest.raises(ConfigError, match=r"'wgrads'; known: .*did you mean 'wgrad'"):
        shifting(rescue_shift_operands=["wgrads"])


def test_a_chosen_shift_is_bitwise_absent_without_trouble_and_goes_on_after_a_restore():
    config = shifting(rescue_shift_format="E3M4", rescue_shift_layers="h.0.*", rescue_shift_operands=["gradient"])
    armed, plain = Trainer(config), Trainer(CALM)
    for _ in range(5):
        assert untimed(armed.step().record) == untimed(plain.step().record)
    straight = Trainer(config)
    multiply_loss(straight, {BAD: 10.0})
    for _ in range(BAD + 1):
        straight.step()
    state = copy.deepcopy(straight.state_dict())
    restored = Trainer(config)
    restored.load_state_dict(state)
    for _ in range(4):
        assert untimed(restored.step().record) == untimed(straight.step().record)
    assert torch.equal(weights(restored.model), weights(straight.model))


def test_a_gradient_that_rounds_to_zero_is_shifted_at_once_and_no_other_rung_acts():
    unscaled = CALM.altered(format="E0M7", scaling="none", batch_size=12)
    config = unscaled.altered(enable_rescue_ladder=True, rescue_window=4)
    trainer = Trainer(config)
    outcomes = [trainer.step() for _ in range(3)]
    assert [(e.step, e.kind, e.detail["trigger"]) for o in outcomes for e in o.events] == [
        (1, "format_shift", "the gradient is zero")
    ]
    assert outcomes[0].record["gradient_norm"] == 0.0 < outcomes[1].record["gradient_norm"]
    without = Trainer(unscaled.altered(enable_rescue_ladder=True, rescue_rungs=["skip", "rate", "rollback"]))
    assert not [event for _ in range(3) for event in without.step().events]


def test_frozen_weights_are_shifted_after_two_windows_and_only_once():
    frozen = CALM.altered(format="E7M0", master_weights=False, learning_rate=1e-5, diagnostic_interval=3)
    trainer = Trainer(frozen.altered(enable_rescue_ladder=True, rescue_window=4))
    events = [event for _ in range(16) for event in trainer.step().events]
    assert [(e.step, e.kind, e.detail["trigger"]) for e in events] == [
        (7, "format_shift", "frozen weights in 2 diagnostic windows")
    ]
