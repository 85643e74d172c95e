"""Weights that their GEMM rotates: measured after the rotation, against SciPy's Hadamard matrices in float64.

Weights, gradients and learning rate are small multiples of powers of two, so that float32 rotates them exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, hadamard
from torch import nn

from altgrad.config.published import published_fields
from altgrad.config.train_config import TrainConfig
from altgrad.diagnostics.protocol import DiagnosticSnapshot, LayerStep
from altgrad.diagnostics.suite import Diagnostics
from altgrad.metrics import METRICS
from altgrad.quantization.kernel.rotation import signs
from altgrad.quantization.quantize import quantize_model
from altgrad.training.step.weight_watch import WeightWatch
from tests.references import slow_diagnostics as slow

OUT, IN, SIZE, RATE = 8, 24, 16, 2.0**-6
EVERYTHING = {"log_stiffness": True, "log_grid_alignment": True, "log_ulp": True}
OF_THE_WEIGHT_ITSELF = {"update_to_weight_ratio", "gradient_sparsity", "stable_rank"}
ON_GRID = {name for name, metric in METRICS.items() if "fprop rotates" in metric.meaning}


def measured(config: TrainConfig, steps: int) -> tuple[list[LayerStep], DiagnosticSnapshot]:
    """The layer's step in each of some steps of SGD, and the measurement at the last of them."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(IN, OUT, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-60, 61, (OUT, IN), generator=generator) / 64)
    quantized = quantize_model(model, config)
    diagnostics = Diagnostics(config, model, quantized.layers, None)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    watch, found = WeightWatch(quantized.layers, optimizer), []
    for step in range(1, steps + 1):
        quantized.begin_step(seed=1, step=step)
        model[0].weight.grad = torch.randint(-9, 10, (OUT, IN), generator=generator).float() / 16
        watch.before_step()
        optimizer.step()
        watch.after_optimizer()
        found += watch.steps()
    return found, diagnostics.measure(steps, found[-1:])[0]


def rotation(size: int = SIZE) -> np.ndarray:
    """(IN, IN rounded up to whole blocks), float64"""
    blocks = -(-IN // size)
    block = signs(size, None).numpy()[:, None] * hadamard(size).astype(np.float64) / np.sqrt(size)
    return block_diag(*[block] * blocks)[:IN]


def by_hand(step: LayerStep, granularity: str) -> slow.SlowStep:
    turned = (x.numpy().astype(np.float64) @ rotation() for x in (step.weight_before, step.intended, step.gradient))
    exact = [x.astype(np.float32) for x in turned]
    return slow.SlowStep(step.format, granularity, *exact)


@pytest.mark.parametrize("granularity", ["tensor", "row", "block"])
@pytest.mark.parametrize("name", ["E2M1", "E4M3", "E0M7", "E5M2"])
def test_every_measure_on_the_grid_is_that_of_the_rotated_weight_which_the_gemm_rounds(name, granularity):
    config = TrainConfig(format=name, scale_granularity=granularity, gemms={"fprop": {"hadamard": SIZE}}, **EVERYTHING)
    steps, snapshot = measured(config, 3)
    slow_steps = [by_hand(step, granularity) for step in steps]
    expected = slow.measure(slow_steps[-1:])
    compared = expected.keys() - OF_THE_WEIGHT_ITSELF
    assert compared == ON_GRID - {"realised_displacement"}
    for metric in sorted(compared):
        if expected[metric] is None:
            assert metric not in snapshot.values
        else:
            assert snapshot.values[metric] == pytest.approx(expected[metric], rel=2e-5, abs=1e-6), metric
    changes = [one.rounded(one.intended).astype(float) - one.rounded(one.weight) for one in slow_steps]
    updates = [one.intended.astype(float) - one.weight for one in slow_steps]
    displacement = slow.realised_displacement(changes, updates)
    assert snapshot.values["realised_displacement"] == pytest.approx(displacement, rel=1e-4)


def test_measures_of_the_weight_itself_are_those_without_a_rotation():
    plain = measured(TrainConfig(format="E4M3", **EVERYTHING), 1)[1].values
    turned = measured(TrainConfig(format="E4M3", gemms={"fprop": {"hadamard": SIZE}}, **EVERYTHING), 1)[1].values
    assert all(turned[metric] == plain[metric] for metric in OF_THE_WEIGHT_ITSELF)
    assert turned["stall_rate"] != plain["stall_rate"]


def test_the_rounded_weight_is_the_one_with_which_the_gemm_in_effect_multiplies():
    exact = {"hadamard": SIZE, "activation": {"format": "FP32"}}
    model = nn.Sequential(nn.Linear(IN, OUT, bias=False))
    layer = quantize_model(model, TrainConfig(format="E4M3", gemms={"fprop": exact})).layers["0"]
    torch.testing.assert_close(model(torch.eye(IN)).t(), layer.rounded_weight(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("fields", [{"hadamard_signs": "redrawn"}, {}], ids=["redrawn", "fixed"])
def test_where_the_rotation_is_redrawn_measures_on_the_grid_are_absent(fields):
    config = TrainConfig(format="E4M3", gemms={"fprop": {"hadamard": SIZE, **fields}}, **EVERYTHING)
    snapshot = measured(config, 2)[1]
    is_absent = bool(fields)
    for values in (snapshot.values, snapshot.layers[0]):
        assert (ON_GRID & values.keys() == set()) is is_absent
        assert values.keys() >= OF_THE_WEIGHT_ITSELF


def test_of_quartet_what_stalls_is_what_its_forward_gemm_reads():
    fields: dict[str, Any] = {**published_fields("quartet"), "recipe": "quartet"}
    steps, snapshot = measured(TrainConfig(**fields), 1)
    turned = [x.double().numpy() @ rotation(32) for x in (steps[0].weight_before, steps[0].intended)]
    stored = []
    for values in turned:  # MXFP4: in each row of 32 the scale 2^(floor(log2 amax) - 2), and the nearest of 15 values
        scale = 2.0 ** (np.floor(np.log2(np.abs(values).max(1, keepdims=True))) - 2)
        grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        nearest = np.abs(np.abs(values / scale)[..., None] - grid).argmin(-1)
        stored.append(np.sign(values) * grid[nearest] * scale)
    assert snapshot.values["stall_rate"] == pytest.approx(np.mean(stored[0] == stored[1]), abs=1.5 / stored[0].size)
