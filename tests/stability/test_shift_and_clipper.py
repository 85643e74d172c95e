"""Shift and clipper by hand: triggers at their very bounds, what is shifted, what is said, what is remembered."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.stability.clipper import PartitionClipper
from altgrad.stability.protocol import StepState
from altgrad.stability.shift import EmergencyShift
from tests.references.step_states import state_of
from tests.support.runs.small_runs import SMALL

PATIENCE = {"emergency_shift_nan_patience": 2, "emergency_shift_stall_windows": 2}
BOUNDS = {"emergency_shift_stall_threshold": 0.5, "emergency_shift_displacement": 0.25}
CONFIG = SMALL.altered(format="E4M3", enable_emergency_shift=True, **PATIENCE, **BOUNDS)
FROZEN = {"stall_rate": 0.75, "realised_displacement": 0.125}


def model_of(config: TrainConfig) -> QuantizedModel:
    torch.manual_seed(0)
    return quantize_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), config)


def shift_of(**fields: Any) -> tuple[EmergencyShift, QuantizedModel]:
    config = CONFIG.altered(**fields)
    quantized = model_of(config)
    return EmergencyShift(config, quantized.layers, quantized.write_back), quantized


def taken(shift: EmergencyShift, *states: StepState) -> list[str]:
    """The kinds of all events of some steps."""
    for state in states:
        shift.on_gradients(state)
        shift.after_step(state)
    return [event.kind for state in states for event in state.events]


def bad(step: int) -> StepState:
    return state_of(step, math.nan)


def frozen(step: int, **measured: float) -> StepState:
    return state_of(step, **FROZEN | measured)


def names(quantized: QuantizedModel, site: Any = "weight") -> list[str]:
    return [layer.format_of(site).name for layer in quantized.layers.values()]


@pytest.mark.parametrize(
    ("course", "at"),
    [("ff", 2), ("f.f", None), ("f.ff", 4), ("fsf", None), ("fdf", None), ("f-f", 3), ("ffff", 2)],
)
def test_only_frozen_windows_in_a_row_shift(course: str, at: int | None) -> None:
    """f: stalled and displaced by nothing; s: not stalled; d: displaced; .: neither; -: not measured."""
    shift, _ = shift_of()
    measured = {"f": (0.9, 0.1), "s": (0.4, 0.1), "d": (0.9, 0.3), ".": (0.1, 1.0)}
    steps = [
        state_of(step, **dict(zip(FROZEN, measured[letter], strict=True)) if letter != "-" else {})
        for step, letter in enumerate(course, start=1)
    ]
    taken(shift, *steps)
    shifted = [event.step for state in steps for event in state.events if event.kind == "format_shift"]
    assert shifted[:1] == ([] if at is None else [at])


@pytest.mark.parametrize(("course", "at"), [("nnn", 3), ("nn.n", None), ("n.n.n", None), (".nnn", 4), ("nn", None)])
def test_only_non_finite_steps_in_a_row_shift(course: str, at: int | None) -> None:
    shift, _ = shift_of(emergency_shift_nan_patience=3)
    steps = [bad(step) if letter == "n" else state_of(step) for step, letter in enumerate(course, start=1)]
    taken(shift, *steps)
    assert [event.step for state in steps for event in state.events] == ([] if at is None else [at])


def test_every_site_of_every_layer_goes_one_format_down_and_the_event_says_how_many() -> None:
    shift, quantized = shift_of(weight_format="E0M7", gradient_format="BF16")
    state = bad(7)
    assert taken(shift, bad(6), state) == ["format_shift", "format_shift"]
    found = {(e.detail["from"], e.detail["to"]): e.detail["sites"] for e in state.events}
    assert found == {("E4M3", "E5M2"): 2, ("E0M7", "E3M4"): 2}
    assert {e.detail["step"] for e in state.events} == {e.step for e in state.events} == {7}
    assert {e.detail["trigger"] for e in state.events} == {"2 non-finite steps"}
    sites = ("weight", "activation", "gradient")
    assert [names(quantized, site) for site in sites] == [["E3M4"] * 2, ["E5M2"] * 2, ["BF16"] * 2]


def test_the_trigger_says_what_was_measured() -> None:
    shift, _ = shift_of()
    state = frozen(20)
    taken(shift, frozen(10), state)
    assert state.events[0].detail["trigger"] == "stall rate 0.750, realised displacement 0.125 over 2 windows"


@pytest.mark.parametrize(
    "measured",
    [{"stall_rate": 0.5}, {"realised_displacement": 0.25}, {"stall_rate": 0.4}, {"realised_displacement": 2.0}],
)
def test_a_window_at_the_bound_is_not_frozen(measured: dict[str, float]) -> None:
    shift, _ = shift_of()
    assert taken(shift, *(frozen(step, **measured) for step in range(4))) == []


@pytest.mark.parametrize("missing", FROZEN)
def test_where_one_of_the_two_was_not_measured_there_is_no_window(missing: str) -> None:
    shift, _ = shift_of()
    states = [state_of(step, **{k: v for k, v in FROZEN.items() if k != missing}) for step in range(4)]
    assert taken(shift, *states) == []
    assert taken(shift, frozen(5)) == [] and taken(shift, frozen(6)) == ["format_shift"]


def test_after_a_shift_both_counts_begin_anew() -> None:
    shift, quantized = shift_of(format="E0M7", emergency_shift_nan_patience=3, emergency_shift_stall_windows=3)
    both = [state_of(step, math.nan, **FROZEN) for step in range(1, 4)]
    for state in both[:2]:
        assert taken(shift, state) == []
    shift.on_gradients(both[2])
    assert names(quantized) == ["E3M4"] * 2
    assert taken(shift, bad(4), bad(5)) == []  # two bad steps since
    assert taken(shift, frozen(6), frozen(7)) == []  # two windows
    assert taken(shift, frozen(8)) == ["format_shift"] and names(quantized) == ["E5M2"] * 2


@pytest.mark.parametrize("overflow", ["inf", "saturate"])
def test_what_overflows_to_inf_does_so_in_the_next_format(overflow: str) -> None:
    shift, quantized = shift_of(format="float8_e4m3", overflow=overflow)
    taken(shift, bad(1), bad(2))
    assert names(quantized) == ["E5M2"] * 2
    assert {layer.format_of("weight").overflow for layer in quantized.layers.values()} == {overflow}


def test_nowhere_to_go_is_said_once_and_again_by_no_restored_run() -> None:
    shift, _ = shift_of(format="E8M7")
    states = [bad(step) for step in range(1, 9)]
    assert taken(shift, *states) == ["shift_unavailable"]
    assert states[1].events[0].detail == {"trigger": "2 non-finite steps"}
    restored, _ = shift_of(format="E8M7")
    restored.load_state_dict(shift.state_dict())
    assert taken(restored, *(bad(step) for step in range(9, 13))) == []


def test_a_restored_shift_goes_on_counting() -> None:
    for state in (bad, frozen):
        shift, _ = shift_of()
        assert taken(shift, state(1)) == []
        restored, _ = shift_of()
        restored.load_state_dict(shift.state_dict())
        assert taken(restored, state(2)) == ["format_shift"]


def test_stored_weights_are_rounded_at_once_and_only_where_a_format_changed() -> None:
    shift, quantized = shift_of(master_weights=False)
    weight = quantized.layers["0"].weight
    taken(shift, bad(1), bad(2))
    scaled = weight.detach() * 2.0**8
    assert torch.equal(scaled.to(torch.float8_e5m2).float(), scaled)
    last, stored = shift_of(master_weights=False, format="E8M7")
    with torch.no_grad():
        stored.layers["0"].weight += 1e-4  # off its grid
    before = stored.layers["0"].weight.detach().clone()
    taken(last, bad(1), bad(2))
    assert torch.equal(stored.layers["0"].weight, before)


# the clipper

CLIPPING = SMALL.altered(
    format="E5M2", enable_partition_clipping=True, partition_clip_base=2.0, partition_clip_overflow_threshold=0.25
)


def clipped(state: StepState, **fields: Any) -> StepState:
    config = CLIPPING.altered(**fields)
    clipper = PartitionClipper(config, model_of(config).layers)
    clipper.on_gradients(state)
    clipper.after_step(state)
    assert clipper.state_dict() == {}
    return state


def with_gradient(norm: float, overflow: float | None) -> StepState:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([norm])
    return state_of(3, 1.0, norm, [parameter], overflow)


@pytest.mark.parametrize(
    ("norm", "overflow", "left"),
    [(8.0, 0.25, 2.0), (8.0, 1.0, 2.0), (8.0, 0.2499, 8.0), (8.0, 0.0, 8.0), (8.0, None, 8.0), (2.0, 0.5, 2.0),
     (1.0, 0.5, 1.0)],
)  # fmt: skip
def test_a_norm_above_the_limit_becomes_the_limit_from_the_threshold_on(norm, overflow, left) -> None:
    state = clipped(with_gradient(norm, overflow))
    assert float(state.parameters[0].grad) == pytest.approx(left, rel=1e-6)
    said = [(e.kind, e.step, e.detail) for e in state.events]
    clip = ("clip", 3, {"norm": norm, "limit": 2.0, "overflow_rate": overflow})
    assert said == ([clip] if left != norm else [])


def test_the_limit_follows_the_narrowest_gradient_format_of_now() -> None:
    config = CLIPPING.altered(layer_formats={"1": "E4M3"}, weight_format="E0M7", activation_format="E0M7")
    layers = model_of(config).layers
    clipper = PartitionClipper(config, layers)
    assert clipper.limit() == 2.0 * 448 / 57344
    layers["1"].site("gradient").set_format(FORMATS["E5M2"])
    assert clipper.limit() == 2.0


def test_a_skipped_step_is_not_clipped() -> None:
    state = with_gradient(math.inf, 0.5)
    state.skip = True
    assert clipped(state).events == [] and math.isinf(float(state.parameters[0].grad))
