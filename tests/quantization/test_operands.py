"""A layer's six operands, each against a slow reference: which tensor, cast how, along which dimension."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from altgrad.config.cast import GEMMS, Cast
from altgrad.config.operands import ALL_OPERANDS, Operand, roundings
from altgrad.config.recipe import Recipe
from altgrad.quantization.fake_quantize import fake_quantize
from altgrad.quantization.kernel.scaled_rounding import round_site
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel

TOKENS, INTO, OUT = 48, 64, 32
BLOCKS = {"scale_granularity": "1x16"}
RECIPES = {
    "one format": {"format": "E4M3"},
    "a format a tensor": {"format": "E4M3", "gradient_format": "E5M2", "weight_format": "E2M5"},
    "blocks": {"format": "E2M1", **BLOCKS},
    "blocks along the last dimension": {"format": "E2M1", **BLOCKS, "block_axis": "last"},
    "square tiles": {"format": "E4M3", "scale_granularity": "16x16"},
    "wide tiles": {"format": "E2M3", "scale_granularity": "4x32"},
    "rows along the contraction": {"format": "E2M1", "gemms": {g: {"block": "row"} for g in GEMMS}},
    "rows": {"format": "E2M1", "scale_granularity": "row"},
    "one operand": {"format": "E4M3", "gemms": {"wgrad": {"gradient": {"format": "E2M1"}}}},
    "one GEMM high": {"format": "E2M1", "gemms": {"dgrad": {"format": "FP32"}}},
    "two levels": {
        "format": "E2M1",
        "gemms": {g: {"block": "1x16", "scale_rule": "real", "scale_format": "E4M3"} for g in GEMMS},
    },
    "rotated": {"format": "E2M1", **BLOCKS, "gemms": {"wgrad": {"hadamard": 16}}},
    "unscaled": {"format": "E5M2", "scaling": "none"},
}


def layer_and_tensors(recipe: Recipe) -> tuple[QuantizedModel, nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(INTO, OUT))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(OUT, INTO, generator=generator))
        model[0].bias.copy_(torch.randn(OUT, generator=generator))
    x = torch.randn(4, TOKENS // 4, INTO, generator=generator) * torch.exp(torch.randn(INTO, generator=generator))
    dy = torch.randn(4, TOKENS // 4, OUT, generator=generator) * torch.exp(2 * torch.randn(OUT, generator=generator))
    return quantize_model(model, recipe), model, x.requires_grad_(), dy


@pytest.mark.parametrize("name", RECIPES)
def test_each_product_is_of_the_operands_that_its_casts_say(name):
    recipe = Recipe(**RECIPES[name])
    quantized, model, x, dy = layer_and_tensors(recipe)
    y = model(x)
    y.backward(dy)
    casts = quantized.recipe.casts_at("0")
    tensors = {
        "activation": x.detach().reshape(-1, INTO),
        "weight": model[0].weight.detach(),
        "gradient": dy.reshape(-1, OUT),
    }
    seen = {
        operand: fake_quantize(tensors[operand.site], casts[operand], along(operand, casts[operand])).double()
        for operand in ALL_OPERANDS
    }
    expected = {
        "y": seen[Operand("fprop", "activation")] @ seen[Operand("fprop", "weight")].t()
        + model[0].bias.detach().double(),
        "dx": seen[Operand("dgrad", "gradient")] @ seen[Operand("dgrad", "weight")],
        "dw": seen[Operand("wgrad", "gradient")].t() @ seen[Operand("wgrad", "activation")],
    }
    found = {"y": y.detach().reshape(-1, OUT), "dx": x.grad.reshape(-1, INTO), "dw": model[0].weight.grad}
    for product, value in expected.items():
        error = (found[product].double() - value).norm() / value.norm()
        assert error < 2e-6, product
    assert torch.allclose(model[0].bias.grad, dy.reshape(-1, OUT).sum(0), rtol=1e-5, atol=1e-5)


def along(operand: Operand, cast: Cast) -> str:
    """What the GEMM contracts, spelled out: y over in, dx over out, dW over tokens."""
    if cast.axis == "last":
        return "last"
    contracted = {
        ("fprop", "activation"): "last",
        ("fprop", "weight"): "last",
        ("dgrad", "gradient"): "last",
        ("dgrad", "weight"): "first",
        ("wgrad", "gradient"): "first",
        ("wgrad", "activation"): "first",
    }
    return contracted[operand]


def test_only_what_gemms_see_alike_shares_a_rounding():
    names = {
        key: {r.name for found in roundings(Recipe(**RECIPES[key]).casts_at()).values() for r in found}
        for key in RECIPES
    }
    assert names["one format"] == {"weight", "activation", "gradient"} == names["square tiles"] == names["rows"]
    every = {f"{gemm}.{site}" for gemm, sites in GEMMS.items() for site in sites}
    assert names["blocks"] == every == names["wide tiles"] == names["two levels"]
    assert names["one operand"] == {"weight", "activation", "dgrad.gradient", "wgrad.gradient"}


def test_each_rounding_counts_for_itself():
    quantized, model, x, dy = layer_and_tensors(Recipe(**RECIPES["blocks"]))
    model(x).backward(dy)
    counts = quantized.counts()
    assert {site for _, site in counts} == {str(operand) for operand in ALL_OPERANDS}
    sizes = {"activation": TOKENS * INTO, "weight": OUT * INTO, "gradient": TOKENS * OUT}
    for (_, site), found in counts.items():
        assert float(found[0]) == sizes[site.partition(".")[2]]
    assert not torch.equal(counts["0", "dgrad.gradient"], counts["0", "wgrad.gradient"])


def test_stochastic_roundings_of_one_tensor_draw_independent_numbers():
    recipe = Recipe(format="E2M1", rounding="stochastic", gemms={"dgrad": {"block": "1x8"}, "wgrad": {"block": "1x16"}})
    layer, key = layer_and_tensors(recipe)[0].layers["0"], torch.tensor([1, 2, 0], dtype=torch.int32)
    dy = torch.full((4, TOKENS // 4, OUT), 0.3)  # between two grid values under either scale: each value is a coin
    sites = layer.roundings("gradient")
    first, second = ((round_site(dy, s.spec, s.history, key, s.mode)[0] > 0.3).double() for s in sites)
    assert 0.1 < first.mean() < 0.9 and 0.1 < second.mean() < 0.9
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 4 / (TOKENS * OUT) ** 0.5


def test_layers_of_the_first_and_last_blocks_stay_high():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(5))
            self.head = nn.Linear(8, 8)

    for first, last, high in ((1, 0, [0]), (0, 2, [3, 4]), (0, 0.3, [3, 4]), (0.2, 0.2, [0, 4])):
        quantized = quantize_model(
            Model(),
            Recipe(format="E2M1", layer_formats={"head": "E4M3"}, high_first_blocks=first, high_last_blocks=last),
        )
        formats = [quantized.layers[f"h.{i}.0"].format_of("weight").name for i in range(5)]
        assert formats == ["BF16" if i in high else "E2M1" for i in range(5)]
        assert quantized.layers["head"].format_of("weight").name == "E4M3"


@pytest.mark.parametrize(
    ("gemms", "words"),
    [
        ({"forward": {}}, "'forward' is no GEMM"),
        ({"fprop": {"gradient": {}}}, "no operand of fprop"),
        ({"fprop": {"weight": {"formt": "E4M3"}}}, "gemms.fprop.weight.formt"),
        ({"wgrad": {"gradient": {"hadamard": 16}}}, "rotated alike"),
        ({"wgrad": {"block": "1x32", "scaling": "delayed"}}, "have no history"),
        ({"wgrad": 3}, "gemms.wgrad=3: expected fields by name, a mapping"),
    ],
)
def test_gemms_that_mean_nothing_are_refused_in_one_line(gemms, words):
    with pytest.raises(ValueError, match=words) as error:
        Recipe(format="E4M3", gemms=gemms)
    assert "\n" not in str(error.value)


def test_a_healed_operand_changes_only_its_own_product():
    base = {"format": "E2M1", **BLOCKS}
    for gemm, sites in GEMMS.items():
        for site in sites:
            plain, healed = (
                products(Recipe(**base, gemms=gemms)) for gemms in ({}, {gemm: {site: {"format": "FP32"}}})
            )
            changed = {name for name in plain if not torch.equal(plain[name], healed[name])}
            assert changed == {{"fprop": "y", "dgrad": "dx", "wgrad": "dw"}[gemm]}, (gemm, site)


def products(recipe: Recipe) -> dict[str, torch.Tensor]:
    _, model, x, dy = layer_and_tensors(recipe)
    y = model(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "dw": model[0].weight.grad}


@pytest.mark.compiled
def test_a_compiled_layer_is_the_eager_one_and_its_graph_serves_other_formats():
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    for fmt, rule in itertools.product(("E2M1", "E4M3"), ("ceil", "floor")):
        recipe = Recipe(format=fmt, gemms={gemm: {"block": "1x16", "scale_rule": rule} for gemm in GEMMS})
        _, model, x, dy = layer_and_tensors(recipe)
        eager = products(recipe)
        y = torch.compile(model, backend=graphs, dynamic=False)(x)
        y.backward(dy)
        assert torch.allclose(y, eager["y"], rtol=1e-5, atol=1e-4)
        assert torch.allclose(model[0].weight.grad, eager["dw"], rtol=1e-5, atol=1e-4)
    assert graphs.frame_count <= 2  # one, and one more where the second model is not yet known
