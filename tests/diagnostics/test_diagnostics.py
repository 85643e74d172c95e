"""Each diagnostic against a slow second implementation, on layers that a real AdamW moves, and on known answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from altgrad.diagnostics.measures.decay import DecayLost
from altgrad.diagnostics.measures.stable_rank import stable_rank
from altgrad.diagnostics.protocol import LayerStep
from altgrad.formats import find_format
from altgrad.quantization.kernel.round import round_to_format
from altgrad.training.step.weight_watch import decoupled_decay
from altgrad.training.trainer import Trainer
from tests.references import slow_diagnostics as slow
from tests.references.stepped_layers import Bench, rows_of
from tests.support.runs.small_runs import SMALL


def assert_same(measured: Mapping[str, Any], expected: Mapping[str, float | None]) -> None:
    for metric, value in expected.items():
        if value is None:
            assert metric not in measured, metric
        else:
            loose = 5e-3 if metric == "stable_rank" else 2e-5
            assert measured[metric] == pytest.approx(value, rel=loose, abs=1e-6), metric


@pytest.mark.parametrize("scaling", ["tensor", "row", "block", "none"])
@pytest.mark.parametrize("master_weights", [True, False], ids=["master", "stored"])
@pytest.mark.parametrize("name", ["E0M7", "E3M4", "E4M3", "E7M0"])
def test_every_metric_of_single_weights_is_what_loops_over_them_say(name, master_weights, scaling):
    scales = {"scaling": "none"} if scaling == "none" else {"scale_granularity": scaling}
    bench = Bench(format=name, master_weights=master_weights, **scales)
    bench.step()
    steps, snapshot, _ = bench.measured_step()
    expected = bench.slow(steps)
    assert_same(snapshot.values, slow.measure(list(expected.values())))
    for layer, found in rows_of(snapshot).items():
        assert_same(found, slow.measure([expected[layer]]))


@pytest.mark.parametrize("update_rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("master_weights", [True, False], ids=["master", "stored"])
@pytest.mark.parametrize("name", ["E0M7", "E3M4", "E4M3", "E7M0"])
def test_displacement_is_that_of_the_summed_changes_and_updates_of_every_step(name, master_weights, update_rounding):
    bench = Bench(format=name, master_weights=master_weights, update_rounding=update_rounding)
    for window in (3, 5):  # the second must not remember the first
        changes: dict[str, list[np.ndarray]] = {layer: [] for layer in bench.layers}
        updates: dict[str, list[np.ndarray]] = {layer: [] for layer in bench.layers}
        for position in range(window):
            last = position == window - 1
            steps, snapshot = bench.measured_step()[:2] if last else (bench.step(), None)
            for step in steps:
                changes[step.name].append((step.stored_after.double() - step.stored_before.double()).numpy())
                updates[step.name].append((step.intended.double() - step.weight_before.double()).numpy())
        assert snapshot is not None
        for layer, found in rows_of(snapshot).items():
            expected = slow.realised_displacement(changes[layer], updates[layer])
            assert found["realised_displacement"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_displacement_holds_across_a_change_of_format_in_the_window():
    bench = Bench(format="E7M0")
    start = {name: layer.rounded_weight() for name, layer in bench.layers.items()}
    weights = {name: layer.weight.detach().clone() for name, layer in bench.layers.items()}
    bench.step()
    for layer in bench.layers.values():
        layer.set_format("weight", find_format("E5M2"))
    steps, snapshot, _ = bench.measured_step()
    for step in steps:
        change, intent = step.stored_after - start[step.name], step.intended - weights[step.name]
        expected = slow.realised_displacement([change.double().numpy()], [intent.double().numpy()])
        assert rows_of(snapshot)[step.name]["realised_displacement"] == pytest.approx(expected, rel=1e-4)


def test_stochastic_rounding_stalls_most_weights_at_every_step_and_arrives_all_the_same():
    bench = Bench(format="E3M4", master_weights=False, update_rounding="stochastic", learning_rate=1e-4)
    for _ in range(99):
        bench.step()
    _, snapshot, _ = bench.measured_step()
    assert snapshot.values["stall_rate"] > 0.85
    assert snapshot.values["realised_displacement"] == pytest.approx(1.0, abs=0.1)


def test_updates_too_small_for_the_grid_stall_all_weights_and_move_nothing():
    bench = Bench(format="E0M7", master_weights=False, learning_rate=1e-7)
    bench.step()
    _, snapshot, _ = bench.measured_step()
    for found in (snapshot.values, *rows_of(snapshot).values()):
        assert found["stall_rate"] == 1.0
        assert found["realised_displacement"] == 0.0
        assert found["ulps_moved_zero_fraction"] == found["zero_update_fraction"] == 1.0


def test_where_no_update_was_intended_stall_and_displacement_are_absent():
    bench = Bench(format="E4M3", learning_rate=0.0)
    _, snapshot, _ = bench.measured_step()
    assert not {"stall_rate", "realised_displacement"} & snapshot.values.keys()
    assert snapshot.values["update_to_weight_ratio"] == 0.0


def test_with_fp32_nothing_stalls_and_the_intent_arrives_whole():
    bench = Bench(format="FP32")
    bench.step()
    _, snapshot, _ = bench.measured_step()
    assert snapshot.values["stall_rate"] == 0.0
    assert snapshot.values["realised_displacement"] == 1.0
    assert snapshot.values["on_grid_fraction"] == 1.0


def ulps_moved(name: str, before: list[float], after: list[float], scale: float = 1.0) -> LayerStep:
    """A step of stored values under a scale that was there before it."""
    bench = Bench(nn.Sequential(nn.Linear(len(before), 1)), format=name)
    old, new = (torch.tensor([values], dtype=torch.float32) for values in (before, after))
    one = torch.ones_like(old)
    return LayerStep("0", bench.layers["0"], one, old, old, new, new, one * scale, one / scale)


@pytest.mark.parametrize(
    ("name", "scale", "before", "after", "moved"),
    [
        ("E0M7", 1.0, 127 / 128, 1.5, 65),  # 192 / 128, which the doubled scale of after the step has
        ("E0M7", 1.0, 127 / 128, 4.0, 385),  # fixed point: the step stays 1/128
        ("E0M7", 1.0, -1 / 128, 1 / 256, 1),  # half a step counts as the even position
        ("E4M3", 1.0, 448.0, 512.0, 2),  # 480, 512
        ("E4M3", 2.0, 896.0, 1024.0, 2),
        ("E4M3", 0.5, 224.0, -224.0, -252),  # the index of 448 is 126
        ("E3M4", 1.0, 31.0, 40.0, 5),  # 32, 34, 36, 38, 40
        ("E7M0", 1.0, 2.0**64, 2.0**67, 3),
        ("E1M6", 1.0, 3.96875, 4.0, 1),
        ("E5M2", 2.0**-40, 2.0**-40, 2.0**-41 * 1.25, -3),  # 1.75, 1.5, 1.25 of the binade below
    ],
)
def test_moves_are_counted_on_the_grid_of_before_the_step_beyond_its_largest_value_too(
    name, scale, before, after, moved
):
    step = ulps_moved(name, [before], [after], scale)
    assert step.ulps_moved.item() == moved


@pytest.mark.parametrize("name", ["E0M7", "E1M6", "E2M5", "E4M3", "E5M2", "E7M0", "BF16", "E2M13", "E0M3"])
@pytest.mark.parametrize("growth", [0.25, 0.5, 1.0, 2.0, 8.0])
def test_moves_over_a_change_of_scale_are_those_of_exact_arithmetic(name, growth):
    """Values on the old grid become values on another one, larger or smaller by a power of two, up to its top."""
    fmt = find_format(name)
    generator = torch.Generator().manual_seed(1)
    top = min(fmt.max, 2.0**40)
    spread = torch.exp2(-8 * torch.rand(2, 300, generator=generator)) * top * torch.randn(2, 300, generator=generator)
    before, after = (round_to_format(row, fmt) for row in spread)
    after = after * growth
    step = ulps_moved(name, (before / 4).tolist(), (after / 4).tolist(), 0.25)
    expected = [
        slow.position(y, fmt) - slow.position(x, fmt) for x, y in zip(before.tolist(), after.tolist(), strict=True)
    ]
    assert step.ulps_moved[0].tolist() == [float(np.float32(number)) for number in expected]


@pytest.mark.parametrize("name", ["E0M7", "E2M5", "E4M3", "E7M0"])
def test_stalled_is_a_weight_whose_stored_value_stayed_whatever_the_scale_did(name):
    """A largest weight that grows doubles the scale: others stay."""
    bench = Bench(nn.Sequential(nn.Linear(20, 8)), format=name, learning_rate=1e-4)
    layer = bench.layers["0"]
    with torch.no_grad():
        layer.weight[0, 0] = 1.9 * layer.weight.abs().max()  # below the top or above it, as the format has it
    stored, weight = layer.rounded_weight(), layer.weight.detach().clone()
    bench.backward()
    bench.before_step()
    steps = bench.finish()
    with torch.no_grad():
        layer.weight[0, 0] *= 2
    grown = dataclasses.replace(steps[0], intended=layer.weight.detach().clone(), stored_after=layer.rounded_weight())
    snapshot, _ = bench.diagnostics.measure(1, [grown])
    pairs = zip(weight.flatten().tolist(), layer.weight.flatten().tolist(), strict=True)
    values = zip(stored.flatten().tolist(), layer.rounded_weight().flatten().tolist(), strict=True)
    kept = [old == new for (old, new), (asked, to) in zip(values, pairs, strict=True) if asked != to]
    assert snapshot.values["stall_rate"] == pytest.approx(sum(kept) / len(kept))
    assert 0 < sum(kept) < len(kept)


def test_a_weight_that_crosses_zero_moves_the_sum_of_both_indices():
    bench = Bench(nn.Sequential(nn.Linear(20, 5)), format="E4M3", scaling="none")
    layer = bench.layers["0"]
    before, after = torch.full((5, 20), -(2.0**-8)), torch.full((5, 20), 2.0**-9)  # 2 and 1 times the smallest value
    one = torch.ones(5, 20)
    step = LayerStep("0", layer, one, before, before, after, after, one, one)
    assert torch.equal(step.ulps_moved, torch.full((5, 20), 3.0))
    assert torch.isnan(LayerStep("0", layer, one, before, before, after, after * torch.nan, one, one).ulps_moved).all()


def test_layer_gradient_norms_are_those_before_clipping():
    bench = Bench(format="E4M3")
    bench.backward()
    with torch.no_grad():
        for parameter in bench.model.parameters():
            parameter.grad *= 1000
    norms = {name: float(layer.weight.grad.double().norm()) for name, layer in bench.layers.items()}
    bench.before_step()
    snapshot, _ = bench.diagnostics.measure(bench.number, bench.finish())
    for name, found in rows_of(snapshot).items():
        assert found["gradient_norm"] == pytest.approx(norms[name], rel=1e-6)
    assert "gradient_norm" not in snapshot.values  # the trainer records it at every step


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (64, 64), (1, 9)])
def test_stable_rank_is_that_of_the_singular_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-15
    assert float(stable_rank(weight)) == pytest.approx(slow.stable_rank(weight.numpy()), rel=5e-3)


def test_stable_rank_of_known_matrices():
    assert float(stable_rank(torch.eye(8))) == pytest.approx(8.0)
    assert float(stable_rank(torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 9)))) == pytest.approx(1.0)
    assert float(stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))) == pytest.approx(1.5)
    assert torch.isnan(stable_rank(torch.zeros(3, 4)))


def test_correlations_find_a_planted_relation_and_the_control_does_not():
    bench = Bench(nn.Sequential(nn.Linear(64, 64)), format="E4M3")
    layer = bench.layers["0"]
    weight, one = layer.weight.detach().clone(), torch.ones(64, 64)
    gradient = torch.exp2(torch.floor(torch.log2(weight.abs())))
    step = LayerStep("0", layer, gradient, weight, layer.rounded_weight(), weight, layer.rounded_weight(), one, one)
    snapshot, _ = bench.diagnostics.measure(1, [step])
    assert snapshot.values["gradient_stiffness_pearson"] == pytest.approx(1.0)
    assert snapshot.values["gradient_stiffness_log_correlation"] == pytest.approx(1.0)
    assert abs(snapshot.values["gradient_stiffness_shuffled"]) < 0.1
    assert snapshot.values["gradient_stiffness_ratio"] == pytest.approx(8.0)  # 2^M


@pytest.mark.parametrize(
    ("decay", "lost"),
    [
        (0.03, 1.0),  # 1 -> 0.97, 1.75 -> 1.6975, 2^-9 -> 0.97 x 2^-9: all return
        (0.033, 2 / 3),  # 1 -> 0.967, nearer to 0.9375: the ULP below a power of two is half as large
        (0.125, 1 / 3),  # 1.75 -> 1.53, nearer to 1.5; the subnormal returns
        (0.6, 0.0),  # 0.4 x 2^-9 -> 0
    ],
)
def test_decay_is_lost_where_nearest_rounding_takes_it_back(decay, lost):
    """E4M3 with weights 1, -1.75, the smallest one and 0, by hand; absent with masters and without decay."""
    bench = Bench(nn.Sequential(nn.Linear(4, 1, bias=False)), format="E4M3", scaling="none", master_weights=False)
    layer = bench.layers["0"]
    weight = torch.tensor([[1.0, -1.75, 2.0**-9, 0.0]])
    one = torch.ones_like(weight)
    step = LayerStep("0", layer, one, weight, weight, weight, weight, one, one, decay)
    found = DecayLost().measure([step])
    assert float(found.step["decay_lost"]) == pytest.approx(lost) == float(found.layers["0"]["decay_lost"])
    assert not DecayLost().measure([dataclasses.replace(step, decay=0.0)]).step


@pytest.mark.parametrize(("name", "settings"), [
    ("AdamW", {}), ("SGD", {}), ("Adam", {"decoupled_weight_decay": True}), ("Adafactor", {}), ("Adam", {}),
    ("NAdam", {}), ("RAdam", {"decoupled_weight_decay": True}), ("RMSprop", {}), ("Adagrad", {}), ("Adadelta", {}),
    ("Adamax", {}), ("SGD", {"momentum": 0.9}),
])  # fmt: skip
def test_the_share_that_decay_takes_is_what_the_optimizer_takes_without_a_gradient(name, settings):
    """Four steps, of which only the first has a gradient: what decay alone then does is all that happens."""
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    parameter = nn.Parameter(weight.clone())
    optimizer = getattr(torch.optim, name)([parameter], lr=0.01, weight_decay=0.1, **settings)
    for step in range(4):
        before = parameter.detach().clone()
        parameter.grad = torch.full_like(weight, 0.0 if step else 1e-12)
        optimizer.step()
    taken = 1 - parameter.detach() / before
    found = decoupled_decay(optimizer, optimizer.param_groups[0])
    if bool((taken - taken.mean()).abs().max() < 1e-6) and taken.mean().item() == pytest.approx(0.001, rel=1e-2):
        assert found == pytest.approx(0.001)
    else:
        assert found == 0.0, taken


@pytest.mark.parametrize("master_weights", [True, False])
def test_decay_lost_is_measured_without_masters_alone(master_weights):
    trainer = Trainer(SMALL.altered(format="E4M3", master_weights=master_weights, max_steps=4))
    records = [trainer.step().record for _ in range(4)]
    assert ("decay_lost" in records[-1]) == (not master_weights)
    if not master_weights:
        assert records[-1]["decay_lost"] == 1.0  # 6e-4 x 0.1 at most
