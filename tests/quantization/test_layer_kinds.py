"""Every kind of layer that is rounded, against its three GEMMs by hand, and against the plain layer in FP32."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.config.recipe import Recipe
from altgrad.quantization.adapters.linear import RoundedTransposedLinear
from altgrad.quantization.adapters.registry import register_gemm
from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.quantized_model import quantize_model
from tests.support.gemm_reference import reference_linear

FP32 = Recipe(format="FP32")
HOW = {
    "tensor": ({}, {}),
    "row": ({"scale_granularity": "row"}, {"row": True}),
    "block": ({"scale_granularity": "1x4"}, {"block": 4}),
}
Linear = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def same(rounded: nn.Module, reference: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-6) -> None:
    """Output and all gradients of a rounded module and of a reference in float64 with its parameters by name."""
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    parameters = {
        name.replace(".", "_"): p.detach().double().requires_grad_() for name, p in rounded.named_parameters()
    }
    y = rounded(*ours)
    y = y[0] if isinstance(y, tuple) else y
    expected = reference(*theirs, **parameters)
    assert y.shape == expected.shape
    dy = torch.randn(y.shape)
    y.backward(dy)
    expected.backward(dy.double())
    pairs = [(y, expected), *((a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))]
    pairs += [(p.grad, parameters[name.replace(".", "_")].grad) for name, p in rounded.named_parameters()]
    for ours_now, expected_now in pairs:
        assert (ours_now.double() - expected_now).abs().max() <= tolerance * expected_now.abs().max()


def patches_by_hand(x: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int) -> list[Tensor]:
    """For each group the patches of x (batch, in, ...): (batch x places, in / groups x kernel), value by value."""
    dims, width = x.ndim - 2, x.shape[1] // groups
    padded = functional.pad(x, [padding] * 2 * dims)
    places = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size in padded.shape[2:]]
    found: list[list[Tensor]] = [[] for _ in range(groups)]
    for sample in padded:
        for place in torch.cartesian_prod(*(torch.arange(n) for n in places)).reshape(-1, dims).tolist():
            for group in range(groups):
                patch = sample[group * width : (group + 1) * width]
                for axis, at in enumerate(place):
                    index = torch.arange(kernel) * dilation + at * stride
                    patch = patch.index_select(axis + 1, index)
                found[group].append(patch.flatten())
    return [torch.stack(rows) for rows in found]


class Conv1D(nn.Module):
    """Weight (in, out), as in Hugging Face's GPT-2."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


register_gemm(Conv1D, RoundedTransposedLinear)


@pytest.mark.parametrize("how", HOW)
def test_a_transposed_weight_is_that_of_a_linear_layer(how: str) -> None:
    fields, reference = HOW[how]
    model = nn.Sequential(Conv1D(6, 10))
    quantize_model(model, Recipe(format="E4M3", **fields))
    transposed = lambda x, **p: reference_linear(x, p["0_weight"].t(), p["0_bias"], **reference)  # noqa: E731
    same(model, transposed, torch.randn(2, 3, 10))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("kind", "groups", "sizes"), [(nn.Conv1d, 1, (9,)), (nn.Conv2d, 2, (5, 6)), (nn.Conv3d, 1, (3, 4, 3))]
)
def test_a_convolution_is_the_gemm_that_it_is(kind: Any, groups: int, sizes: tuple[int, ...], how: str) -> None:
    fields, reference = HOW[how]
    kernel, stride, padding, dilation = (3, 2, 1, 2) if kind is nn.Conv1d else (2, 1, 1, 2)
    layer = kind(4, 6, kernel, stride, padding, dilation, groups)
    quantize_model(layer, Recipe(format="E4M3", **fields))
    x = torch.randn(2, 4, *sizes)

    def by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parts = zip(patches_by_hand(x, kernel, stride, padding, dilation, groups), weight.chunk(groups), strict=True)
        if how == "tensor" and groups > 1:  # one scale over all groups: as one product with a block-diagonal weight
            found, weights = zip(*parts, strict=True)
            wide = torch.block_diag(*(w.flatten(1) for w in weights))
            y = reference_linear(torch.cat(found, 1), wide)
        else:
            y = torch.cat([reference_linear(a, w.flatten(1), **reference) for a, w in parts], 1)
        places = kind(4, 6, kernel, stride, padding, dilation, groups)(x.float()).shape[2:]
        return (y + bias).unflatten(0, (x.shape[0], -1)).transpose(1, 2).unflatten(-1, places)

    same(layer, by_hand, x)


def test_padding_of_any_mode_and_a_single_sample_are_those_of_the_plain_convolution() -> None:
    for options in ({"padding": "same"}, {"padding": 2, "padding_mode": "circular"}, {"padding": "valid"}):
        plain = nn.Conv2d(3, 4, 4, **options)
        rounded = copy.deepcopy(plain)
        quantize_model(rounded, FP32)
        for x in (torch.randn(2, 3, 7, 6), torch.randn(3, 7, 6)):
            assert torch.allclose(rounded(x), plain(x), atol=1e-6), options


def attention(linear: Linear, q: Tensor, k: Tensor, v: Tensor, **p: Tensor) -> Tensor:
    """Two heads, batch first; q, k, v are projected by one product where they are one tensor."""
    if q is k:
        parts = linear(q, p["in_proj_weight"], p["in_proj_bias"]).chunk(3, -1)
    else:
        third = zip((q, k, v), p["in_proj_weight"].chunk(3), p["in_proj_bias"].chunk(3), strict=True)
        parts = [linear(x, w, b) for x, w, b in third]
    a, b, c = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in parts)
    y = torch.softmax(a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5, -1) @ c
    return linear(y.transpose(1, 2).flatten(2), p["out_proj_weight"], p["out_proj_bias"])


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_rounds_both_projections(need_weights: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(layer.in_proj_bias)
    quantized = quantize_model(layer, Recipe(format="E4M3"))
    assert list(quantized.layers) == ["in_proj_weight", "out_proj"]

    class Once(nn.Module):
        def __init__(self, alike: bool) -> None:
            super().__init__()
            self.layer, self.alike = layer, alike

        def named_parameters(self, *a: Any, **k: Any) -> Any:  # without the prefix
            return layer.named_parameters()

        def forward(self, *x: Tensor) -> Tensor:
            q, k, v = x * 3 if self.alike else x
            return layer(q, k, v, need_weights=need_weights)[0]

    same(Once(True), lambda x, **p: attention(reference_linear, x, x, x, **p), torch.randn(3, 5, 8), tolerance=1e-5)
    layer.zero_grad()
    inputs = [torch.randn(3, length, 8) for length in (4, 6, 6)]
    same(Once(False), lambda q, k, v, **p: attention(reference_linear, q, k, v, **p), *inputs, tolerance=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}],
    ids=str,
)
def test_multihead_attention_in_fp32_is_the_plain_one_with_any_mask(options: dict[str, Any]) -> None:
    plain = nn.MultiheadAttention(8, 2, **options)
    rounded = copy.deepcopy(plain)
    quantize_model(rounded, FP32)
    assert rounded.state_dict().keys() == plain.state_dict().keys()
    first = options.get("batch_first", False)
    q, k, v = (torch.randn(5, 3, n) for n in (8, options.get("kdim", 8), options.get("vdim", 8)))
    padding = torch.zeros((5, 3) if first else (3, 5), dtype=torch.bool)
    padding[0, -1] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    causal = causal[:3, :3] if first else causal
    masks: list[dict[str, Any]] = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": causal.float() * -3, "key_padding_mask": padding.float() * -9},
        {"attn_mask": torch.randn((5 if first else 3) * 2, *causal.shape)},
    ]
    for mask in masks:
        for need_weights in (True, False):
            expected = plain(q, k, v, need_weights=need_weights, **mask)
            found = rounded(q, k, v, need_weights=need_weights, **mask)
            assert torch.allclose(found[0], expected[0], atol=1e-6), (mask.keys(), need_weights)
            assert (found[1] is None) == (expected[1] is None)
            assert expected[1] is None or torch.allclose(found[1], expected[1], atol=1e-6)
    if not first:
        single = rounded(q[:, 0], k[:, 0], v[:, 0], average_attn_weights=False)
        expected = plain(q[:, 0], k[:, 0], v[:, 0], average_attn_weights=False)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(single, expected, strict=True))


class Scaled(nn.Linear):
    """A subclass with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x * 3, weight=self.weight / 5, bias=self.bias) + x.sum()


class Alike(nn.Linear):
    """A subclass that computes as the plain layer."""


def test_a_subclass_of_linear_keeps_its_own_forward_pass() -> None:
    layer = Scaled(6, 4)
    quantize_model(layer, Recipe(format="E4M3"))
    same(layer, lambda x, weight, bias: reference_linear(x * 3, weight / 5, bias) + x.sum(), torch.randn(3, 6))
    assert isinstance(layer, Scaled) and type(layer).plain_class is Scaled
    alike = nn.Sequential(Alike(6, 4))
    assert isinstance(quantize_model(alike, FP32).layers["0"], QuantizedLinear)
    assert repr(alike[0]).startswith("RoundedAlike(in_features=6")


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1), Alike(4, 4), nn.MultiheadAttention(4, 1)])
def test_a_rounded_layer_is_copied_pickled_and_made_plain_again(layer: nn.Module) -> None:
    kind, keys = type(layer), list(layer.state_dict())
    quantize_model(layer, Recipe(format="E2M1"))
    inputs = (torch.randn(2, 4, 3, 3) if kind is nn.Conv2d else torch.randn(2, 4),) * (
        3 if kind is nn.MultiheadAttention else 1
    )
    first = lambda y: y[0] if isinstance(y, tuple) else y  # noqa: E731
    expected = first(layer(*inputs))
    assert list(layer.state_dict()) == keys
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(first(again(*inputs)), expected)
    quantize_model(layer, FP32)  # a second recipe
    assert not torch.equal(first(layer(*inputs)), expected)
