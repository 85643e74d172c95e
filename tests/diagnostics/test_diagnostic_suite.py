"""The suite of diagnostics: the shadow, what is absent, the `tensors` table, one transfer, restored windows."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.diagnostics.measures.value_histogram import counts, row
from altgrad.diagnostics.suite import Diagnostics
from altgrad.metrics import columns
from altgrad.quantization.layers import unrounded
from altgrad.results import SCHEMAS
from tests.references import slow_diagnostics as slow
from tests.references.stepped_layers import EVERYTHING, Bench, plain_model, rows_of


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
