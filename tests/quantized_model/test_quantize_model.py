"""Putting quantised layers into other people's models: what is swapped, what is shared, what must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from altgrad.config.recipe import GEMM_SITES, Recipe
from altgrad.quantization.quantize import quantize_, quantize_model
from tests.references.layer_reference import IN, OUT, draw, layer_of, run
from tests.references.oracles import same_bits


def test_each_site_has_its_own_format_and_of_several_matching_globs_the_last_counts():
    model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), "head": nn.Linear(4, 3)})
    globs = {"mlp.*": "E2M5", "mlp.[12]": "E4M3b11"}
    layers = quantize_model(model, Recipe(format="E4M3", gradient_format="E5M2", layer_formats=globs)).layers
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
    quantize_model(quantised, Recipe(format="FP32"))
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
    layers = quantize_model(model, Recipe(format="E4M3")).layers
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
    layers = quantize_model(model, Recipe(format="E4M3")).layers
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
    for model in (nn.Sequential(nn.LayerNorm(3)), nn.Embedding(3, 3), nn.LazyLinear(3)):
        with pytest.raises(ValueError, match=r"no layer to round"):
            quantize_model(model, Recipe(format="E4M3"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes_keep_them(dtype):
    model = mlp()
    quantize_model(model, Recipe(format="E4M3", scaling="delayed"))
    model.to(dtype)
    y = model(draw(4, 12, seed=0).to(dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert all(parameter.grad.dtype == dtype and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_under_autocast_the_gemms_stay_in_float32_and_the_output_has_the_plain_layers_dtype(dtype, autocast):
    layer = layer_of(Recipe(format="E4M3"))
    plain = nn.Linear(IN, OUT, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    x, dy = draw(4, IN, seed=3).to(dtype), draw(4, OUT, seed=4).to(autocast)
    expected = run(layer, x.float(), dy.float())
    layer.zero_grad()
    with torch.autocast("cpu", autocast):
        y = layer(x)
        assert y.dtype == plain(x).dtype
    y.backward(dy.to(y.dtype))
    assert torch.equal(y, expected[0].to(y.dtype))
    assert torch.equal(layer.weight.grad, expected[2])


def test_everything_of_a_layer_follows_the_model_to_another_device():
    layer = layer_of(Recipe(format="E4M3", scaling="delayed")).to("meta")
    tensors = [layer.key, *(t for site in GEMM_SITES for t in (layer.site(site).spec, layer.site(site).slots.first))]
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


@pytest.mark.parametrize("name", ["E4M3", "FP32", "mxfp8"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_an_input_of_whole_or_complex_numbers_is_refused_as_by_the_plain_layer(name, dtype):
    """The output has the input's dtype: products of int64 were cut off to whole numbers, without a word."""
    for layer, shape in ((nn.Linear(4, 4), (2, 4)), (nn.Conv1d(2, 4, 1), (1, 2, 4)), (nn.LSTM(4, 4), (3, 1, 4))):
        x = torch.ones(shape).to(dtype)
        with pytest.raises((RuntimeError, ValueError)):
            layer(x)
        quantize_(layer, name)
        with pytest.raises((TypeError, ValueError), match="dtype") as caught:
            layer(x)
        assert "\n" not in str(caught.value)
        layer(torch.ones(shape))


def test_a_layer_with_a_weight_without_values_stays_plain_and_says_why():
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.Linear(4, 4))
    quantized = quantize_(model, "E4M3")
    assert quantized.left_out == dict.fromkeys(("0", "1"), "a weight of it has no values")
    model(torch.randn(2, 4)).sum().backward()
    assert list(quantized.layers) == ["2"]


def test_a_layer_of_complex_numbers_stays_plain_and_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 4))
    x = torch.randn(2, 4, dtype=torch.complex64)
    y = model[0](x)
    quantized = quantize_(model, "E4M3")
    assert quantized.left_out == {"0": "its weights are complex numbers"} and list(quantized.layers) == ["1"]
    assert torch.equal(model[0](x), y)
