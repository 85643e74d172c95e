"""Quantised linear layers: the three GEMMs against a hand-made reference, and the swap in all kinds of models.

The reference rounds with the oracles and multiplies in float64.  With operands of few bits within two octaves every
product and sum is exact in float32 too, so that results are compared bit for bit whatever the order of summation.
"""

from __future__ import annotations

import copy
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad.formats import FORMATS, find_format
from altgrad.quantization.layers import QuantizedLinear, quantize_model, unrounded
from altgrad.quantization.round import round_to_format
from altgrad.quantization.site import COUNTERS
from altgrad.training.config import GEMM_SITES, Recipe
from tests.oracles import quantise_by_hand, same_bits

IN, OUT = 24, 10


def draw(*shape: int, seed: int) -> torch.Tensor:
    """Random signs, magnitudes from 1/2 to 2 in steps of 2^-6: sums of products of rounded values are exact."""
    source = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(32, 129, shape, generator=source) / 64
    return magnitude * (2 * torch.randint(0, 2, shape, generator=source) - 1)


def layer_of(recipe: Recipe, *, bias: bool = True) -> QuantizedLinear:
    model = nn.Sequential(nn.Linear(IN, OUT, bias=bias))
    with torch.no_grad():
        model[0].weight.copy_(draw(OUT, IN, seed=1) / 16)
        if bias:
            model[0].bias.copy_(draw(OUT, seed=2))
    return quantize_model(model, recipe)["0"]


def run(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """[y, dx, dW, db]"""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def by_hand(layer: QuantizedLinear, x: torch.Tensor, dy: torch.Tensor, **how) -> tuple[list[np.ndarray], dict]:
    """[y, dx, dW, db] and the counts of each site, from the formats alone."""
    operands = {"activation": x, "weight": layer.weight.detach(), "gradient": dy}
    rounded, counts = {}, {}
    for site, operand in operands.items():
        rounded[site], counts[site] = quantise_by_hand(operand.numpy(), layer.format_of(site), **how)
    a, w, g = (rounded[site].astype(np.float64) for site in ("activation", "weight", "gradient"))
    bias = 0 if layer.bias is None else layer.bias.detach().numpy().astype(np.float64)
    y = np.einsum("...i,oi->...o", a, w) + bias
    dx = np.einsum("...o,oi->...i", g, w)
    dw = np.einsum("ro,ri->oi", g.reshape(-1, OUT), a.reshape(-1, IN))
    db = [] if layer.bias is None else [dy.numpy().astype(np.float64).reshape(-1, OUT).sum(0)]
    return [y, dx, dw, *db], counts


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


def test_each_site_has_its_own_format_and_of_several_matching_globs_the_last_counts():
    model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), "head": nn.Linear(4, 3)})
    globs = {"mlp.*": "E2M5", "mlp.[12]": "E4M3b11"}
    layers = quantize_model(model, Recipe(format="E4M3", gradient_format="E5M2", layer_formats=globs))
    formats = {name: [str(layer.format_of(site)) for site in GEMM_SITES] for name, layer in layers.items()}
    assert formats == {"mlp.0": ["E2M5"] * 3, "mlp.1": ["E4M3b11"] * 3, "head": ["E4M3", "E4M3", "E5M2"]}


def test_a_glob_that_matches_no_layer_is_an_error_that_lists_the_layers():
    with pytest.raises(ValueError, match=r"'lm_head' matches no layer; layers: 0, 2, 4"):
        quantize_model(mlp(), Recipe(format="E4M3", layer_formats={"lm_head": "BF16"}))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 5))


class TiedLanguageModel(nn.Module):
    """Embedding and head share a Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.body = nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x[..., 0].abs().mul(100).long() % 20
        return self.head(torch.relu(self.body(self.embedding(tokens))) + x)


MODELS = {
    "mlp": mlp,
    "encoder": lambda: nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True),
    "pre-norm encoder": lambda: nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True, norm_first=True),
    "stack": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True), 2),
    "tied": TiedLanguageModel,
}


@pytest.mark.parametrize("name", MODELS)
def test_with_fp32_everywhere_a_model_is_bitwise_the_plain_one(name):
    torch.manual_seed(0)
    plain = MODELS[name]()
    quantised = copy.deepcopy(plain)
    assert quantize_model(quantised, Recipe(format="FP32"))
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        outputs = []
        for model in (plain, quantised):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.zero_grad()
            inputs = x.clone().requires_grad_()
            output = model(inputs)
            output.square().mean().backward()
            outputs.append((output.detach(), inputs.grad))
            optimizer.step()
        assert same_bits(outputs[0][0].numpy(), outputs[1][0].numpy())
        assert same_bits(outputs[0][1].numpy(), outputs[1][1].numpy())
        for (path, first), (other, second) in zip(plain.named_parameters(), quantised.named_parameters(), strict=True):
            assert path == other
            assert same_bits(first.grad.numpy(), second.grad.numpy()), path


def test_the_swap_shares_parameters_so_that_an_optimizer_made_before_still_trains():
    model = mlp()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers = quantize_model(model, Recipe(format="E4M3"))
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    weight = layers["0"].weight.detach().clone()
    model(draw(4, 12, seed=0)).sum().backward()
    optimizer.step()
    assert not torch.equal(layers["0"].weight, weight)


def test_tied_weights_stay_one_parameter_with_the_gradients_of_both_uses():
    model = TiedLanguageModel()
    quantize_model(model, Recipe(format="E4M3"))
    assert model.head.weight is model.embedding.weight
    assert len(list(model.parameters())) == 3
    with pytest.raises(ValueError, match="share a weight but not its format"):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        quantize_model(
            nn.Sequential(first, second), Recipe(format="E4M3", master_weights=False, layer_formats={"1": "E3M4"})
        )


def test_a_layer_that_stands_in_several_places_is_swapped_in_all_of_them_and_stays_one():
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU(), shared), "b": nn.Sequential(shared)})
    layers = quantize_model(model, Recipe(format="E4M3"))
    assert list(layers) == ["a.0"]
    assert model["a"][0] is model["a"][2] is model["b"][0] is layers["a.0"]


@pytest.mark.parametrize("evaluating", [True, False])
@pytest.mark.parametrize("name", ["encoder", "stack"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor")
def test_torchs_fused_encoder_inference_does_not_bypass_the_rounding(name, evaluating):
    torch.manual_seed(0)
    model = MODELS[name]().train(not evaluating)
    x, padding = torch.randn(2, 5, 12), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=padding)
        quantize_model(model, Recipe(format="E2M1"))
        rounded = model(x, src_key_padding_mask=padding)
    with_gradients = model(x, src_key_padding_mask=padding)
    valid = ~padding
    assert (plain - rounded)[valid].abs().max() > 0.01
    assert torch.allclose(rounded[valid], with_gradients[valid], atol=1e-5)


def test_where_there_is_nothing_to_swap_it_says_so():
    for model in (nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Linear(3, 3)):
        with pytest.raises(ValueError, match=r"no nn\.Linear"):
            quantize_model(model, Recipe(format="E4M3"))


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes_keep_them(dtype):
    model = mlp()
    quantize_model(model, Recipe(format="E4M3", scaling="delayed"))
    model.to(dtype)
    y = model(draw(4, 12, seed=0).to(dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert all(parameter.grad.dtype == dtype and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_under_autocast_the_gemms_stay_in_float32():
    layer = layer_of(Recipe(format="E4M3"))
    x, dy = draw(4, IN, seed=3), draw(4, OUT, seed=4)
    expected = run(layer, x, dy)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.backward(dy)
    assert torch.equal(y, expected[0])
    assert torch.equal(layer.weight.grad, expected[2])


def test_everything_of_a_layer_follows_the_model_to_another_device():
    layer = layer_of(Recipe(format="E4M3", scaling="delayed")).to("meta")
    tensors = [layer.key, *(t for site in GEMM_SITES for t in (layer.site(site).spec, layer.site(site).slot))]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_hooks_survive_the_swap_also_one_that_computes_the_weight():
    model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(6, 6)))
    seen = []
    model[0].register_forward_hook(lambda *arguments: seen.append(1))
    names = [name for name, _ in model.named_parameters()]
    quantize_model(model, Recipe(format="E4M3"))
    model(draw(3, 6, seed=0)).sum().backward()
    assert seen == [1]
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_copied_and_a_checkpointed_model_compute_the_same():
    model = mlp()
    quantize_model(model, Recipe(format="E4M3"))
    x = draw(4, 12, seed=0).requires_grad_()
    expected = run(model, x.detach(), torch.ones(4, 5))
    assert all(
        torch.equal(a, b)
        for a, b in zip(run(copy.deepcopy(model), x.detach(), torch.ones(4, 5)), expected, strict=True)
    )
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).backward(torch.ones(4, 5))
    assert torch.equal(x.grad, expected[1])


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
        layer.site(site).set_format(find_format(name))
        for ours, reference in zip(run(layer, x, dy), by_hand(layer, x, dy)[0], strict=True):
            assert same_bits(ours.numpy() + 0.0, reference + 0.0)


def test_the_rounded_weight_is_what_the_gemm_sees():
    layer = layer_of(Recipe(format="E3M4", scale_granularity="row"), bias=False)
    expected = quantise_by_hand(layer.weight.detach().numpy(), FORMATS["E3M4"], "row")[0]
    assert same_bits(layer.rounded_weight().numpy(), expected)
    assert torch.equal(layer(torch.eye(IN)).t(), layer.rounded_weight())
    scale, inverse = layer.weight_scale()
    assert scale.shape == inverse.shape == layer.weight.shape
    assert torch.equal(scale * inverse, torch.ones(OUT, IN))
    on_grid = layer.rounded_weight() * inverse
    assert torch.equal(on_grid, round_to_format(on_grid, FORMATS["E3M4"]))


def test_stochastic_layers_differ_from_key_to_key_and_from_layer_to_layer():
    model = nn.Sequential(nn.Linear(IN, IN), nn.Linear(IN, IN))
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight)
    layers = quantize_model(model, Recipe(format="E2M1", rounding="stochastic"))
    first, second = (layer.rounded_weight() for layer in layers.values())
    assert not torch.equal(first, second)
    assert torch.equal(first, layers["0"].rounded_weight())
    layers["0"].key.copy_(torch.tensor([5, 6], dtype=torch.int32))
    assert not torch.equal(first, layers["0"].rounded_weight())


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
def test_one_compiled_graph_serves_every_format_shift():
    torch.manual_seed(0)
    torch._dynamo.reset()
    eager, compiled = layer_of(Recipe(format="E4M3")), layer_of(Recipe(format="E4M3"))
    counter = CompileCounterWithBackend("inductor")
    function = torch.compile(compiled, backend=counter, fullgraph=True)
    x, dy = draw(6, IN, seed=3), draw(6, OUT, seed=4)
    for fmt in [*FORMATS.values(), find_format("E2M1"), find_format("E4M3b11")]:
        for layer in (eager, compiled):
            for site in GEMM_SITES:
                layer.site(site).set_format(fmt)
        expected = run(eager, x, dy)
        compiled.zero_grad()
        inputs = x.clone().requires_grad_()
        y = function(inputs)
        y.backward(dy)
        actual = [y.detach(), inputs.grad, compiled.weight.grad, compiled.bias.grad]
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), fmt
        for site in GEMM_SITES:
            assert torch.equal(compiled.site(site).take_counts(), eager.site(site).take_counts())
    assert counter.frame_count == 1
