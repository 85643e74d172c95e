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
from torch.nn.utils.rnn import pack_padded_sequence

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


class Experts(nn.Module):
    """Laid out as in Hugging Face's mixtures, `transposed` as in some of them; every expert gets every second token."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 12, 8)), nn.Parameter(torch.randn(3, 8, 6))
        if transposed:
            self.gate_up_proj, self.down_proj = (
                nn.Parameter(p.detach().transpose(1, 2).contiguous()) for p in (self.gate_up_proj, self.down_proj)
            )

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for expert in torch.arange(3):
            if self.is_transposed:
                gate, up = (x[expert % 2 :: 2] @ self.gate_up_proj[expert]).chunk(2, -1)
                parts.append((functional.silu(gate) * up) @ self.down_proj[expert])
            else:
                gate, up = functional.linear(x[expert % 2 :: 2], self.gate_up_proj[expert]).chunk(2, -1)
                parts.append(functional.linear(functional.silu(gate) * up, self.down_proj[expert]))
        return torch.cat(parts)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("transposed", [False, True])
def test_each_expert_of_a_mixture_is_a_linear_layer(how: str, transposed: bool) -> None:
    fields, reference = HOW[how]
    model = Experts(transposed)
    quantized = quantize_model(model, Recipe(format="E4M3", **fields))
    assert list(quantized.layers) == ["gate_up_proj", "down_proj"]

    def by_hand(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
        parts = []
        for expert, weights in enumerate(zip(gate_up_proj, down_proj, strict=True)):
            wide, narrow = (w.t() if transposed else w for w in weights)
            gate, up = reference_linear(x[expert % 2 :: 2], wide, **reference).chunk(2, -1)
            parts.append(reference_linear(functional.silu(gate) * up, narrow, **reference))
        return torch.cat(parts)

    same(model, by_hand, torch.randn(6, 8), tolerance=1e-5)
    expert = quantize_model(Experts(transposed), Recipe(format="E4M3", master_weights=False, **fields)).layers[
        "down_proj"
    ]
    kept = expert.weight.detach()
    assert torch.equal(expert.rounded_weight(), kept)  # stored on the grid on which each expert is rounded


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_rounds_inputs_of_all_times_at_once_and_states_one_by_one(kind: Any) -> None:
    layer = kind(6, 4)
    quantize_model(layer, Recipe(format="E4M3"))

    def by_hand(x: Tensor, **p: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], 4)
        inputs, outputs = reference_linear(x, p["weight_ih_l0"], p["bias_ih_l0"]), []
        for now in inputs:
            again = reference_linear(h, p["weight_hh_l0"], p["bias_hh_l0"])
            if kind is nn.LSTM:
                i, f, g, o = (now + again).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif kind is nn.GRU:
                (r, z, n), (rh, zh, nh) = now.chunk(3, -1), again.chunk(3, -1)
                z = (z + zh).sigmoid()
                h = (1 - z) * (n + (r + rh).sigmoid() * nh).tanh() + z * h
            else:
                h = (now + again).tanh()
            outputs.append(h)
        return torch.stack(outputs)

    same(layer, by_hand, torch.randn(5, 3, 6), tolerance=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True, "bias": False},
        {"proj_size": 3, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_in_fp32_is_the_plain_one(kind: Any, options: dict[str, Any]) -> None:
    if kind is nn.GRU:
        options = {name: value for name, value in options.items() if name != "proj_size"}
    plain = kind(6, 4, **options)
    rounded = copy.deepcopy(plain)
    quantize_model(rounded, FP32)
    first = plain.batch_first
    x = torch.randn(3, 5, 6) if first else torch.randn(5, 3, 6)
    lengths = torch.tensor([2, 5, 3])
    packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    count = plain.num_layers * (2 if plain.bidirectional else 1)
    h, c = torch.randn(count, 3, plain.proj_size or 4), torch.randn(count, 3, 4)
    start = (h, c) if kind is nn.LSTM else h
    single = tuple(state[:, 0] for state in start) if kind is nn.LSTM else start[:, 0]
    for inputs in ((x,), (x, start), (packed,), (packed, start), (x[:, 0], single)):
        for ours, expected in zip(_tensors(rounded(*inputs)), _tensors(plain(*inputs)), strict=True):
            assert ours.shape == expected.shape and torch.allclose(ours, expected, atol=1e-6)


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found if part is not None for tensor in _tensors(part)]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("how", HOW)
def test_products_of_attention_are_rounded_where_the_recipe_says_so(how: str) -> None:
    fields, reference = HOW[how]
    model = SelfAttention()
    plain = copy.deepcopy(model)
    quantized = quantize_model(model, Recipe(format="E4M3", attention_gemms=True, **fields))
    assert (list(quantized.layers), list(quantized.products)) == (["qkv"], ["scores", "values"])

    def products(a: Tensor, b: Tensor) -> Tensor:
        if how != "tensor":
            return torch.stack([reference_linear(x, y, **reference) for x, y in zip(a, b, strict=True)])
        wide = torch.block_diag(*b)  # one scale for the batch: one product, of which the blocks are taken
        rows = torch.block_diag(*a)
        y = reference_linear(rows, wide.view(len(b), b.shape[1], -1).flatten(0, 1))
        return torch.stack([part.chunk(len(b), 1)[i] for i, part in enumerate(y.chunk(len(a), 0))])

    def by_hand(x: Tensor, qkv_weight: Tensor, qkv_bias: Tensor) -> Tensor:
        q, k, v = reference_linear(x, qkv_weight, qkv_bias, **reference).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        scores = products(q.flatten(0, 1), k.flatten(0, 1)) / 2
        weights = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        y = products(weights, v.flatten(0, 1).transpose(1, 2))
        return y.unflatten(0, (2, 2)).transpose(1, 2).flatten(2)

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def named_parameters(self, *a: Any, **k: Any) -> Any:
            return model.named_parameters()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, is_causal=True)

    same(Causal(), by_hand, torch.randn(2, 5, 8), tolerance=1e-5)
    quantize_model(model, Recipe(format="FP32", attention_gemms=True))
    x, mask = torch.randn(2, 5, 8), torch.rand(2, 1, 5, 5) > 0.4
    mask[0, 0, 1] = False  # a query that may attend to nothing
    for options in ({}, {"attn_mask": mask}, {"attn_mask": mask.float(), "scale": 0.3}):
        assert torch.allclose(model(x, **options), plain(x, **options), atol=1e-6), options


def test_the_products_of_multihead_attention_are_rounded_too() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    plain = copy.deepcopy(layer)
    quantized = quantize_model(layer, Recipe(format="E4M3", attention_gemms=True))
    x = torch.randn(3, 5, 8)
    for need_weights in (True, False):
        y = layer(x, x, x, need_weights=need_weights)[0]
    assert torch.equal(layer(x, x, x)[0], y) and {key[0] for key in quantized.counts()} >= {"scores", "values"}
    quantize_model(layer, Recipe(format="FP32", attention_gemms=True))
    for ours, expected in zip(layer(x, x, x), plain(x, x, x), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
    found = quantize_model(nn.Sequential(layer), Recipe(format="E4M3", attention_gemms=True))
    assert list(found.layers) == ["0.in_proj_weight", "0.out_proj"] and list(found.products) == ["0.scores", "0.values"]


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
    kind, keys, before = type(layer), list(layer.state_dict()), set(vars(layer))
    quantize_model(layer, Recipe(format="E2M1"))
    inputs = (torch.randn(2, 4, 3, 3) if kind is nn.Conv2d else torch.randn(2, 4),) * (
        3 if kind is nn.MultiheadAttention else 1
    )
    first = lambda y: y[0] if isinstance(y, tuple) else y  # noqa: E731
    expected = first(layer(*inputs))
    assert list(layer.state_dict()) == keys
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(first(again(*inputs)), expected)
    second = quantize_model(layer, FP32)  # another recipe on the same model
    assert not torch.equal(first(layer(*inputs)), expected)
    assert second.dequantize_() is layer and type(layer) is kind and set(vars(layer)) == before
