"""Quantised linear layers: the three GEMMs against a reference by hand, special values, one graph for every format."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad.config.recipe import GEMM_SITES, Recipe
from altgrad.formats import FORMATS, find_format
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.kernel.round import round_to_format
from altgrad.quantization.layers import unrounded
from altgrad.quantization.quantize import quantize_model
from tests.references.layer_reference import IN, OUT, by_hand, draw, layer_of, run
from tests.references.oracles import quantise_by_hand, same_bits

RECIPES = [
    *({"format": name} for name in FORMATS if name not in ("FP32", "FP16", "E0M7", "E1M6")),
    {"weight_format": "E4M3", "activation_format": "E3M4", "gradient_format": "E5M2"},
    {"weight_format": "E2M1", "activation_format": "BF16", "gradient_format": "E7M0"},
    {"format": "E4M3", "scale_granularity": "row"},
    {"format": "E2M1", "scale_granularity": "block"},
    {"format": "E4M3", "scaling": "none"},
    {"format": "E3M4", "rounding": "toward_zero"},
]


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1,), ()], ids=str)
@pytest.mark.parametrize("fields", RECIPES, ids=lambda fields: "-".join(fields.values()))
def test_the_three_gemms_see_rounded_operands_and_the_bias_does_not(fields, shape):
    recipe = Recipe(**fields)
    layer = layer_of(recipe)
    x, dy = draw(*shape, IN, seed=3), draw(*shape, OUT, seed=4)
    expected, counts = by_hand(
        layer, x, dy, granularity=recipe.scale_granularity, scaled=recipe.scaling != "none", rounding=recipe.rounding
    )
    for ours, reference in zip(run(layer, x, dy), expected, strict=True):
        assert same_bits(ours.numpy() + 0.0, reference + 0.0)
    for site in GEMM_SITES:
        assert dict(zip(COUNTERS, layer.site(site).take_counts().tolist(), strict=True)) == counts[site]


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("name", ["E0M7", "E1M6", "E4M3", "FP16"])
def test_random_operands_agree_with_the_reference_to_float32_summation(name, power_of_two):
    layer = layer_of(Recipe(format=name, scale_power_of_two=power_of_two))
    source = torch.Generator().manual_seed(0)
    x, dy = torch.randn(33, IN, generator=source), 1e-5 * torch.randn(33, OUT, generator=source)
    expected = by_hand(layer, x, dy)[0]
    # A real scale has another grid: agreement then is only that of two roundings to the same format.
    tolerance = 1e-6 if power_of_two else 4 * 2.0 ** -FORMATS[name].mantissa_bits
    for ours, reference in zip(run(layer, x, dy), expected, strict=True):
        assert np.abs(ours.numpy() - reference).max() < tolerance * np.abs(reference).max()


def test_nan_reaches_only_its_row_and_infinity_saturates():
    layer = layer_of(Recipe(format="E4M3"))
    x, dy = draw(4, IN, seed=3), draw(4, OUT, seed=4)
    clean = run(layer, x, dy)
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, -math.inf
    y, dx, dw, _ = run(layer, x, dy)
    assert y[0].isnan().all() and y[1:].isfinite().all()
    assert torch.equal(y[3], clean[0][3])
    assert dx.isfinite().all()
    assert dw[:, 0].isnan().all() and dw[:, 1:].isfinite().all()
    expected = by_hand(layer, x, dy)[0]
    assert same_bits(y.numpy(), expected[0]) and same_bits(dw.numpy(), expected[2])


def test_a_non_finite_output_gradient_is_visible_in_the_weight_gradient():
    layer = layer_of(Recipe(format="E4M3"))
    dy = draw(4, OUT, seed=4)
    dy[0, 0] = math.nan
    _, dx, dw, db = run(layer, draw(4, IN, seed=3), dy)
    assert dx[0].isnan().all() and dw[0].isnan().all() and db[0].isnan()
    assert dx[1:].isfinite().all() and dw[1:].isfinite().all()


def test_an_empty_batch_passes_and_counts_nothing():
    layer = layer_of(Recipe(format="E4M3"))
    y, dx, dw, db = run(layer, torch.zeros(0, IN), torch.zeros(0, OUT))
    assert y.shape == (0, OUT) and dx.shape == (0, IN)
    assert not dw.any() and not db.any()
    assert layer.site("activation").take_counts()[0] == 0


def test_a_layer_without_bias_and_a_frozen_one_train_what_is_left():
    without = layer_of(Recipe(format="E4M3"), bias=False)
    assert without.bias is None
    expected = by_hand(without, draw(3, IN, seed=3), draw(3, OUT, seed=4))[0]
    for ours, reference in zip(run(without, draw(3, IN, seed=3), draw(3, OUT, seed=4)), expected, strict=True):
        assert same_bits(ours.numpy() + 0.0, reference + 0.0)
    frozen = layer_of(Recipe(format="E4M3"))
    frozen.weight.requires_grad_(False)
    frozen(draw(3, IN, seed=3)).sum().backward()
    assert frozen.weight.grad is None and torch.equal(frozen.bias.grad, torch.full((OUT,), 3.0))


def test_unrounded_is_the_plain_layer_and_ends_with_its_block_even_after_an_error():
    layer = layer_of(Recipe(format="E2M1"))
    plain = nn.Linear(IN, OUT)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x, dy = draw(4, IN, seed=3), draw(4, OUT, seed=4)
    rounded = run(layer, x, dy)
    for site in GEMM_SITES:
        layer.site(site).take_counts()
    with unrounded([layer]):
        assert all(torch.equal(a, b) for a, b in zip(run(layer, x, dy), run(plain, x, dy), strict=True))
        assert all(layer.site(site).take_counts() is None for site in GEMM_SITES)
    with pytest.raises(RuntimeError), unrounded([layer]):
        layer(torch.zeros(IN + 1))
    assert all(torch.equal(a, b) for a, b in zip(run(layer, x, dy), rounded, strict=True))


def test_a_shifted_format_acts_at_the_next_forward_pass():
    layer = layer_of(Recipe(format="E2M1"))
    x, dy = draw(4, IN, seed=3), draw(4, OUT, seed=4)
    for site, name in zip(GEMM_SITES, ("E3M4", "E4M3b9", "E7M0"), strict=True):
        layer.set_format(site, find_format(name))
        for ours, reference in zip(run(layer, x, dy), by_hand(layer, x, dy)[0], strict=True):
            assert same_bits(ours.numpy() + 0.0, reference + 0.0)


def test_the_rounded_weight_is_what_the_gemm_sees():
    layer = layer_of(Recipe(format="E3M4", scale_granularity="row"), bias=False)
    expected = quantise_by_hand(layer.weight.detach().numpy(), FORMATS["E3M4"], "row")[0]
    assert same_bits(layer.rounded_weight().numpy(), expected)
    assert torch.equal(layer(torch.eye(IN)).t(), layer.rounded_weight())
    _, scale, inverse = layer.rounded_weight_and_scale()
    assert scale.shape == inverse.shape == layer.weight.shape
    assert torch.equal(scale * inverse, torch.ones(OUT, IN))
    on_grid = layer.rounded_weight() * inverse
    assert torch.equal(on_grid, round_to_format(on_grid, FORMATS["E3M4"]))


def test_stochastic_layers_differ_from_key_to_key_and_from_layer_to_layer():
    model = nn.Sequential(nn.Linear(IN, IN), nn.Linear(IN, IN))
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight)
    layers = quantize_model(model, Recipe(format="E2M1", rounding="stochastic")).layers
    first, second = (layer.rounded_weight() for layer in layers.values())
    assert not torch.equal(first, second)
    assert torch.equal(first, layers["0"].rounded_weight())
    layers["0"].key.copy_(torch.tensor([5, 6, 0], dtype=torch.int32))
    assert not torch.equal(first, layers["0"].rounded_weight())


@pytest.mark.compiled
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
def test_one_compiled_graph_serves_every_format_shift():
    torch.manual_seed(0)
    torch._dynamo.reset()
    eager, compiled = layer_of(Recipe(format="E4M3")), layer_of(Recipe(format="E4M3"))
    counter = CompileCounterWithBackend("inductor")
    function = torch.compile(compiled, backend=counter, fullgraph=True)
    x, dy = draw(6, IN, seed=3), draw(6, OUT, seed=4)
    rounding = [fmt for fmt in FORMATS.values() if fmt.name != "FP32"]
    formats = [*rounding, find_format("E2M1"), find_format("E4M3b11")]
    for fmt in [*formats, FORMATS["FP32"]]:  # FP32 rounds nothing: the plain layer's graph, without counts
        for layer in (eager, compiled):
            for site in GEMM_SITES:
                layer.set_format(site, fmt)
        expected = run(eager, x, dy)
        compiled.zero_grad()
        inputs = x.clone().requires_grad_()
        y = function(inputs)
        y.backward(dy)
        actual = [y.detach(), inputs.grad, compiled.weight.grad, compiled.bias.grad]
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), fmt
        for site in GEMM_SITES:
            counted, alike = compiled.site(site).take_counts(), eager.site(site).take_counts()
            assert counted is alike is None if fmt.name == "FP32" else torch.equal(counted, alike)
        assert counter.frame_count == (2 if fmt.name == "FP32" else 1)


@pytest.mark.parametrize("native", [False, True])
def test_without_counting_the_values_stay_and_nothing_is_counted(native: bool) -> None:
    recipe = Recipe(format="E4M3", gradient_format="E5M2", native_fp8=native)
    counted, bare = (
        quantize_model(nn.Sequential(nn.Linear(16, 16)), recipe, counting=counting).layers["0"]
        for counting in (True, False)
    )
    bare.load_state_dict(counted.state_dict())
    x, dy = draw(16, 16, seed=3), draw(16, 16, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(run(bare, x, dy), run(counted, x, dy), strict=True))
    assert all(bare.site(site).take_counts() is None for site in GEMM_SITES)
    assert all(counted.site(site).take_counts() is not None for site in GEMM_SITES)


def test_each_step_of_a_loop_of_ones_own_draws_other_numbers_and_a_step_draws_its_own_again() -> None:
    quantized = quantize_model(nn.Sequential(nn.Linear(64, 64)), Recipe(format="E4M3", rounding="stochastic"))
    drawn = []
    for step in (1, 2, 1):
        quantized.begin_step(seed=5, step=step)
        drawn.append(quantized.layers["0"].rounded_weight())
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_delayed_scaling_without_counting_is_refused() -> None:
    with pytest.raises(ValueError, match="needs counting=True"):
        quantize_model(nn.Sequential(nn.Linear(4, 4)), Recipe(format="E4M3", scaling="delayed"), counting=False)


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_a_layer_used_several_times_counts_every_use(uses: int) -> None:
    (layer,) = quantize_model(nn.Sequential(nn.Linear(8, 8)), Recipe(format="E4M3")).layers.values()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    y = x
    for _ in range(uses):
        y = layer(y)
    y.sum().backward()
    for site, values in (("weight", 64), ("activation", 40), ("gradient", 40)):
        counts = dict(zip(COUNTERS, layer.site(site).take_counts().tolist(), strict=True))
        assert counts["uses"] == uses and counts["nonzero"] == values * uses
        assert math.log2(counts["scale"]) < 0  # a mean or a largest, not a sum
    assert layer.site("weight").take_counts() is None
