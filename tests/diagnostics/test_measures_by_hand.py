"""Stall, ULPs moved and realised displacement of a few weights whose stored values are written down here."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.diagnostics.measures.gradient_norm import LayerGradientNorm
from altgrad.diagnostics.measures.realised_displacement import Displacement
from altgrad.diagnostics.measures.stall import Stall
from altgrad.diagnostics.measures.ulps_moved import UlpsMoved
from altgrad.diagnostics.measures.update_size import UpdateSize
from altgrad.diagnostics.protocol import LayerStep, MeasuredStep
from altgrad.quantization.quantize import quantize_model

NOTHING = torch.zeros(0)


def layers_of(**weights: list[float]) -> Any:
    """Layers with these weights in FP32, so that what is stored is the weight."""
    model = nn.ModuleDict({name: nn.Linear(len(values), 1, bias=False) for name, values in weights.items()})
    layers = quantize_model(model, Recipe(format="FP32")).layers
    for name, values in weights.items():
        put(layers[name], values)
    return layers


def put(layer: Any, values: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))


def stepped(layer: Any, name: str, intended: list[float], after: list[float], before: Any = None) -> LayerStep:
    row = torch.tensor([before if before is not None else [0.0] * len(after)])
    ones = torch.ones_like(row)
    stored = torch.tensor([after])
    return LayerStep(name, layer, NOTHING, row, row, torch.tensor([intended]), stored, ones, ones)


def displaced(measure: Displacement, *steps: LayerStep) -> tuple[float, dict[str, float]]:
    found = measure.measure(steps)
    by_layer = {name: float(values["realised_displacement"]) for name, values in found.layers.items()}
    return float(found.step["realised_displacement"]), by_layer


def test_with_masters_each_window_counts_from_the_end_of_the_one_before() -> None:
    layers = layers_of(a=[1.0], b=[2.0, 4.0])
    measure = Displacement(layers, None)
    whole, by_layer = displaced(
        measure, stepped(layers["a"], "a", [0.5], [0.75]), stepped(layers["b"], "b", [2.5, 3.5], [2.5, 4.0])
    )
    assert by_layer == {"a": 0.5, "b": 0.5}
    assert whole == (0.125 + 0.25) / (0.25 + 0.5)
    assert displaced(measure, stepped(layers["a"], "a", [0.25], [0.25]))[1] == {"a": 2.0}, "-0.5 for -0.25"
    # b: changed by 0 and 1, intended -0.5 and 1
    assert displaced(measure, stepped(layers["b"], "b", [2.0, 4.5], [2.5, 5.0]))[1] == {"b": 1 / 1.25}


def test_what_others_do_begins_a_new_window_with_and_without_masters() -> None:
    layers = layers_of(a=[1.0], b=[1.0])
    corrections = {name: torch.zeros(1, 1) for name in layers}
    for measure in (Displacement(layers, None), Displacement(layers, corrections)):
        put(layers["a"], [7.0])
        corrections["a"].fill_(3.0)
        measure.restart()
        assert displaced(measure, stepped(layers["a"], "a", [8.0], [7.5]))[1] == {"a": 0.5 if measure._weight else 1.0}
        put(layers["a"], [1.0])
    assert corrections["a"].item() == 0


def test_without_masters_what_the_write_backs_took_away_was_intended_too() -> None:
    layers = layers_of(a=[1.0, 1.0], tied=[1.0, 1.0])
    corrections: dict[str, Tensor] = {"a": torch.tensor([[0.25, -0.5]])}  # stored minus intended
    measure = Displacement(layers, corrections)
    tied = stepped(layers["tied"], "tied", [5.0, 5.0], [5.0, 5.0])
    found = displaced(measure, tied, stepped(layers["a"], "a", [9.0, 9.0], [0.5, 1.0]))
    # changed by -0.5 and 0, intended -0.75 and 0.5
    assert found == (0.375 / 0.8125, {"a": 0.375 / 0.8125}) and corrections["a"].tolist() == [[0, 0]]
    assert displaced(measure, tied, stepped(layers["a"], "a", [9.0, 9.0], [1.0, 1.0]))[1] == {"a": 1.0}


def test_a_window_goes_on_where_its_state_was_taken() -> None:
    layers = layers_of(a=[1.0])
    measure, other = Displacement(layers, None), Displacement(layers_of(a=[9.0]), None)
    displaced(measure, stepped(layers["a"], "a", [2.0], [3.0]))
    other.load_state_dict(copy.deepcopy(measure.state_dict()))
    step = stepped(layers["a"], "a", [2.5], [4.0])
    assert displaced(other, step) == displaced(measure, step) == (2.0, {"a": 2.0})


def test_stalled_is_who_was_asked_to_move_and_stayed() -> None:
    layers = layers_of(a=[0.0] * 4, b=[0.0] * 2)
    steps = [
        stepped(layers["a"], "a", [1.0, 1.0, 0.0, -1.0], [1.0, 0.0, 0.0, 0.0]),
        stepped(layers["b"], "b", [0.0, 1.0], [0.5, 0.5]),
    ]
    found = Stall().measure(steps)
    assert {name: {m: float(v) for m, v in row.items()} for name, row in found.layers.items()} == {
        "a": {"stall_rate": pytest.approx(2 / 3), "zero_update_fraction": 3 / 4},
        "b": {"stall_rate": 0.0, "zero_update_fraction": 0.0},
    }
    assert {m: float(v) for m, v in found.step.items()} == {"stall_rate": 2 / 4, "zero_update_fraction": 3 / 6}


def test_moves_are_counted_in_positions_of_the_grid() -> None:
    """On the grid of E0M7 with the scale 1 a position is 1/128."""
    model = nn.ModuleDict({"a": nn.Linear(4, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    layers = quantize_model(model, Recipe(format="E0M7")).layers
    unit = 1 / 128
    steps = [
        stepped(layers["a"], "a", [0.0] * 4, [3 * unit, 0.0, -5 * unit, 1 * unit]),
        stepped(layers["b"], "b", [0.0] * 2, [0.0, 12 * unit]),
    ]
    found = UlpsMoved().measure(steps)
    of_all = {metric: float(value) for metric, value in found.step.items()}
    names = ("ulps_moved_mean", "ulps_moved_median", "ulps_moved_max", "ulps_moved_zero_fraction")
    assert tuple(of_all[name] for name in names) == (21 / 6, 1, 12, 2 / 6)
    by_layer = {name: tuple(float(row[metric]) for metric in names) for name, row in found.layers.items()}
    assert by_layer == {"a": (9 / 4, 1, 5, 1 / 4), "b": (6, 0, 12, 1 / 2)}


@pytest.mark.parametrize("size", [1e-37, 3e-25, 1.0, 3e37])
def test_the_size_of_an_update_is_found_however_small_the_weights(size: float) -> None:
    (layer,) = layers_of(a=[0.0] * 2).values()
    step = stepped(layer, "a", [3 * size, 4 * size], [0.0] * 2, before=[2 * size, 2 * size])
    found = UpdateSize().measure([step])
    assert float(found.step["update_to_weight_ratio"]) == pytest.approx(math.hypot(1, 2) / math.hypot(2, 2), rel=1e-5)


@pytest.mark.parametrize("size", [1e-38, 3e-25, 1.0, 3e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_norm_neither_vanishes_nor_overflows_before_its_values_do(size: float, dtype: torch.dtype) -> None:
    (layer,) = layers_of(a=[0.0] * 3).values()
    layer.weight.data = layer.weight.data.to(dtype)
    layer.weight.grad = torch.tensor([[3 * size, 0.0, -4 * size]]).to(dtype)
    measure = LayerGradientNorm()
    measure.before_step(MeasuredStep(1, {"a": layer}, lambda: NOTHING))
    found = measure.measure([stepped(layer, "a", [0.0] * 3, [0.0] * 3)])
    wanted = math.hypot(*layer.weight.grad.double().flatten().tolist())
    assert float(found.layers["a"]["gradient_norm"]) == pytest.approx(wanted, rel=1e-12)
