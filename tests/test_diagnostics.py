"""Diagnostics against slow second implementations, on layers that a real AdamW moves, and against known answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.diagnostics.histogram import counts, row
from altgrad.diagnostics.protocol import Context, DiagnosticSnapshot, LayerStep
from altgrad.diagnostics.rank import stable_rank
from altgrad.diagnostics.suite import Diagnostics
from altgrad.formats import find_format
from altgrad.metrics import columns
from altgrad.quantization.layers import QuantizedLinear, quantize_model, unrounded
from altgrad.results import SCHEMAS
from altgrad.training.config import TrainConfig
from altgrad.training.optim import WriteBack
from tests import slow_diagnostics as slow

EVERYTHING = {"log_stiffness": True, "log_grid_alignment": True, "log_ulp": True, "use_shadow": True}
DEAD_INPUT = 3  # an input that is always zero, with weights that are: no gradient, no update, no stiffness
DEAD_UNIT = 2  # a unit that never fires: weights without a gradient


def plain_model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 33), nn.LayerNorm(33), nn.Linear(33, 5))
    with torch.no_grad():
        model[0].weight[:, DEAD_INPUT] = 0.0
        model[0].bias[DEAD_UNIT] = -100.0
    return model


class Bench:
    """A small model with its optimizer, stepped and measured in the trainer's order."""

    def __init__(self, model: nn.Module | None = None, learning_rate: float = 3e-3, **fields: Any) -> None:
        self.config = TrainConfig(**(EVERYTHING | fields))
        self.model = plain_model() if model is None else model
        self.layers: dict[str, QuantizedLinear] = quantize_model(self.model, self.config)
        for layer in self.layers.values():
            layer.key = next(iter(self.layers.values())).key
        self.write_back = None if self.config.master_weights else WriteBack(self.layers, self.config)
        if self.write_back is not None:
            self.write_back()
            self.write_back.forget()
        corrections = None if self.write_back is None else self.write_back.corrections
        self.diagnostics = Diagnostics(self.config, self.model, self.layers, corrections)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
        self.number = 0

    def loss(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.number)
        x = torch.randn(24, 20, generator=generator)
        x[:, DEAD_INPUT] = 0.0
        target = torch.randint(5, (24,), generator=generator)
        return nn.functional.cross_entropy(self.model(x), target)

    def backward(self) -> None:
        self.number += 1
        next(iter(self.layers.values())).key.copy_(torch.tensor([7, self.number]))
        self.optimizer.zero_grad()
        self.loss().backward()

    def before_step(self) -> None:
        self.diagnostics.before_step(Context(self.number, self.model, self.layers, self.loss))

    def finish(self) -> list[LayerStep]:
        """Clip, move, write back."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        before = {
            name: (layer.weight.detach().clone(), layer.rounded_weight(), *layer.weight_scale())
            for name, layer in self.layers.items()
        }
        self.optimizer.step()
        intended = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        if self.write_back is not None:
            self.write_back()
        steps = []
        for name, layer in self.layers.items():
            weight, stored, scale, inverse = before[name]
            assert layer.weight.grad is not None
            steps.append(
                LayerStep(
                    name,
                    layer,
                    layer.weight.grad,
                    weight,
                    stored,
                    intended[name],
                    layer.rounded_weight(),
                    scale,
                    inverse,
                )
            )
        return steps

    def step(self) -> list[LayerStep]:
        self.backward()
        return self.finish()

    def measured_step(self) -> tuple[list[LayerStep], DiagnosticSnapshot, list[Mapping[str, Any]]]:
        self.backward()
        self.before_step()
        steps = self.finish()
        return steps, *self.diagnostics.measure(self.number, steps)

    def slow(self, steps: list[LayerStep]) -> dict[str, slow.SlowStep]:
        granularity = None if self.config.scaling == "none" else self.config.scale_granularity
        return {
            step.name: slow.SlowStep(
                step.format,
                granularity,
                *(x.numpy().copy() for x in (step.weight_before, step.intended, step.gradient)),
                written=None if self.write_back is None else step.layer.weight.detach().numpy().copy(),
            )
            for step in steps
        }


def rows_of(snapshot: DiagnosticSnapshot) -> dict[str, Mapping[str, Any]]:
    assert all(row["site"] == "weight" and row["step"] == snapshot.step for row in snapshot.layers)
    return {row["layer"]: row for row in snapshot.layers}


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
        layer.site("weight").set_format(find_format("E5M2"))
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


def test_a_weight_that_crosses_zero_moves_the_sum_of_both_indices():
    bench = Bench(nn.Sequential(nn.Linear(20, 5)), format="E4M3", scaling="none")
    layer = bench.layers["0"]
    before, after = torch.full((5, 20), -(2.0**-8)), torch.full((5, 20), 2.0**-9)  # 2 and 1 times the smallest value
    one = torch.ones(5, 20)
    step = LayerStep("0", layer, one, before, before, after, after, one, one)
    assert torch.equal(step.ulps_moved, torch.full((5, 20), 3.0))
    assert torch.isnan(LayerStep("0", layer, one, before, before, after, after * torch.nan, one, one).ulps_moved).all()


@pytest.mark.parametrize("name", ["FP32", "E4M3"])
def test_the_shadow_is_the_plain_model_on_the_same_batch(name):
    bench = Bench(format=name)
    bench.step()
    twin = plain_model()
    twin.load_state_dict({key: value for key, value in bench.model.state_dict().items() if "sites" not in key})
    bench.backward()
    bench.before_step()
    raw = {key: parameter.grad.double().clone() for key, parameter in bench.model.named_parameters()}
    model, bench.model = bench.model, twin
    loss = bench.loss()
    bench.model = model
    loss.backward()
    shadow = {key: parameter.grad.double() for key, parameter in twin.named_parameters()}
    snapshot, _ = bench.diagnostics.measure(bench.number, bench.finish())
    assert snapshot.values["shadow_loss"] == loss.item()
    groups = {layer: [f"{layer}.weight"] for layer in bench.layers} | {None: list(raw)}
    for layer, keys in groups.items():
        found = snapshot.values if layer is None else rows_of(snapshot)[layer]
        g, s = (torch.cat([part[key].flatten() for key in keys]).numpy() for part in (raw, shadow))
        cosine = g @ s / math.sqrt((g @ g) * (s @ s))
        if name == "FP32":
            assert np.array_equal(g, s)
            assert found["gradient_cosine_similarity"] == 1.0
            assert found["gradient_snr_db"] == math.inf
        else:
            assert found["gradient_cosine_similarity"] == pytest.approx(cosine, abs=1e-6)
            assert found["gradient_snr_db"] == pytest.approx(10 * math.log10((s @ s) / ((g - s) @ (g - s))), rel=1e-4)


def test_the_shadow_leaves_gradients_random_state_buffers_and_counts_as_they_were():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 5))
    bench = Bench(model, format="E4M3", scaling="delayed")
    bench.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    bench.before_step()
    assert all(torch.equal(p.grad, kept) for p, kept in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    for layer in bench.layers.values():
        assert not layer.bypass
        counted = [layer.site(site).take_counts() for site in ("weight", "activation", "gradient")]
        with unrounded([layer]):
            layer(torch.ones(1, layer.in_features)).sum().backward()
        assert all(part is not None for part in counted)
        assert all(layer.site(site).take_counts() is None for site in ("weight", "activation", "gradient"))


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


def test_nan_and_inf_that_happened_are_kept():
    bench = Bench(format="E4M3")
    bench.backward()
    bench.layers["0"].weight.grad[0, 0] = torch.nan
    bench.layers["2"].weight.grad[0, 0] = torch.inf
    bench.before_step()
    steps = bench.finish()
    snapshot, tensors = bench.diagnostics.measure(bench.number, steps)
    found = rows_of(snapshot)
    assert math.isnan(found["0"]["gradient_norm"])
    assert found["2"]["gradient_norm"] == math.inf
    assert math.isfinite(found["4"]["gradient_norm"])
    assert math.isnan(found["0"]["gradient_stiffness_pearson"])
    assert math.isnan(snapshot.values["gradient_cosine_similarity"])
    assert all(math.isfinite(row["stable_rank"]) for row in found.values())
    non_finite = {(row["layer"], row["site"]): row["non_finite"] for row in tensors}
    assert non_finite["0", "weight"] == 0 and non_finite["0", "gradient"] > 0


def test_switched_off_diagnostics_leave_their_metrics_absent_and_the_rest_the_same():
    everything, few = Bench(format="E4M3"), Bench(format="E4M3", **dict.fromkeys(EVERYTHING, False))
    values, fewer = everything.measured_step()[1].values, few.measured_step()[1].values
    assert fewer.items() <= values.items()
    gone = ("stiffness", "grid_error", "on_grid", "ulps_moved", "shadow", "gradient_cosine", "gradient_snr")
    assert all(any(word in metric for word in gone) for metric in values.keys() - fewer.keys())
    assert {"stall_rate", "realised_displacement", "stable_rank", "update_to_weight_ratio"} <= fewer.keys()


def test_every_value_is_a_declared_metric_of_its_table():
    _, snapshot, tensors = Bench(format="E4M3").measured_step()
    assert snapshot.values.keys() <= set(columns("step"))
    for found in snapshot.layers:
        assert found.keys() <= set(SCHEMAS["layers"].names)
    pa.Table.from_pylist([{"attempt": 0, **row} for row in tensors], schema=SCHEMAS["tensors"])
    assert {frozenset(row.keys() | {"attempt"}) for row in tensors} == {frozenset(SCHEMAS["tensors"].names)}


def test_histograms_count_every_float32_by_its_binade():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (5000,), generator=generator, dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, 2.0**-149, -(2.0**-127), 2.0**127, torch.inf, -torch.inf, torch.nan])
    values = torch.cat([bits.view(torch.float32), special])
    found = row([*counts(values).tolist(), 1.5, -2.0])
    expected = slow.exponent_counts(values.numpy())
    counted = {found["first_exponent"] + i: count for i, count in enumerate(found["exponents"]) if count}
    assert counted == expected
    assert found["zeros"] == 2
    assert found["non_finite"] == int((~torch.isfinite(values)).sum())
    assert found["sample"] == [1.5, -2.0]
    assert row(counts(torch.zeros(4)).tolist()) | {"sample": []} == {
        "first_exponent": -149,
        "exponents": [0],
        "zeros": 4,
        "non_finite": 0,
        "sample": [],
    }


def test_samples_are_taken_at_the_same_places_every_time():
    first, second = (Bench(format="E4M3", learning_rate=0.0) for _ in range(2))
    one = {(row["layer"], row["site"]): row["sample"] for row in first.measured_step()[2]}
    for _ in range(11):
        _, _, tensors = second.measured_step()
        if tensors and second.number > 1:
            again = {(row["layer"], row["site"]): row["sample"] for row in tensors}
    assert all(one[name, "weight"] == again[name, "weight"] for name in first.layers)
    assert all(len(sample) == 64 for sample in one.values())
    weight = first.layers["0"].weight.detach().flatten().tolist()
    assert set(one["0", "weight"]) <= set(weight)


def test_the_tensors_table_of_500_steps_stays_within_a_megabyte_whatever_the_interval(tmp_path):
    layers = 25  # as in the `small` GPT
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(layers)), nn.Linear(20, 5))
    bench = Bench(model, format="E4M3", diagnostic_interval=1, **dict.fromkeys(EVERYTHING, False))
    size, written = 0, []
    for number in range(1, 32):
        steps = bench.step()
        for step in steps:
            step.gradient.copy_(torch.randn_like(step.gradient).mul(4).exp())  # as wide as gradients are
        _, rows = bench.diagnostics.measure(number, steps)
        if rows:
            table = pa.Table.from_pylist([{"attempt": 0, **row} for row in rows], schema=SCHEMAS["tensors"])
            pq.write_table(table, tmp_path / "part.parquet", compression="zstd")
            size += (tmp_path / "part.parquet").stat().st_size
            written.append(number)
    assert written == [1, 11, 21, 31]
    assert size / len(written) * 50 < 2**20


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def test_no_measurement_waits_for_the_device():
    bench = Bench(format="E4M3", scale_granularity="block")
    bench.backward()
    with _Operations() as seen:
        bench.before_step()
    steps = bench.finish()
    with seen:
        for diagnostic in bench.diagnostics._diagnostics:
            diagnostic.measure(steps)
        bench.diagnostics._histograms.measure(steps)
    synchronising = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "item", "is_nonzero"}
    assert "aten.randperm" in seen.names
    assert not seen.names & {f"aten.{name}" for name in synchronising}


def test_a_restored_window_measures_what_the_uninterrupted_one_does():
    whole, restored = (Bench(format="E3M4", master_weights=False) for _ in range(2))
    for _ in range(4):
        whole.step()
        restored.step()
    state = copy.deepcopy(whole.diagnostics.state_dict())
    corrections = restored.write_back.corrections
    restored.diagnostics = Diagnostics(restored.config, restored.model, restored.layers, corrections)
    restored.diagnostics.load_state_dict(state)
    assert restored.measured_step()[1:] == whole.measured_step()[1:]
