"""Attention: its projections and its products, against GEMMs by hand, and without rounding against the plain layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from tests.support.rounding.gemm_reference import HOW, adapted, reference_linear, same_gemms

Linear = Callable[..., Tensor]


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
    quantized = quantize_model(layer, Recipe(format="E2M3"))
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

    same_gemms(
        Once(True), lambda x, **p: attention(reference_linear, x, x, x, **p), torch.randn(3, 5, 8), tolerance=1e-5
    )
    layer.zero_grad()
    inputs = [torch.randn(3, length, 8) for length in (4, 6, 6)]
    same_gemms(Once(False), lambda q, k, v, **p: attention(reference_linear, q, k, v, **p), *inputs, tolerance=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}],
    ids=str,
)
def test_multihead_attention_without_rounding_is_the_plain_one_with_any_mask(options: dict[str, Any]) -> None:
    plain = nn.MultiheadAttention(8, 2, **options)
    rounded = copy.deepcopy(plain)
    adapted(rounded)
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
    quantized = quantize_model(model, Recipe(format="E2M3", attention_gemms=True, **fields))
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

    same_gemms(Causal(), by_hand, torch.randn(2, 5, 8), tolerance=1e-5)
    adapted(model, attention_gemms=True)
    plain.load_state_dict(model.state_dict())
    x, mask = torch.randn(2, 5, 8), torch.rand(2, 1, 5, 5) > 0.4
    mask[0, 0, 1] = False  # a query that may attend to nothing
    for options in ({}, {"attn_mask": mask}, {"attn_mask": mask.float(), "scale": 0.3}):
        assert torch.allclose(model(x, **options), plain(x, **options), atol=1e-6), options


def test_the_products_of_multihead_attention_are_rounded_too() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    plain = copy.deepcopy(layer)
    quantized = quantize_model(layer, Recipe(format="E2M3", attention_gemms=True))
    x = torch.randn(3, 5, 8)
    for need_weights in (True, False):
        y = layer(x, x, x, need_weights=need_weights)[0]
    assert torch.equal(layer(x, x, x)[0], y) and {key[0] for key in quantized.counts()} >= {"scores", "values"}
    adapted(layer, attention_gemms=True)
    for ours, expected in zip(layer(x, x, x), plain(x, x, x), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
    found = quantize_model(nn.Sequential(layer), Recipe(format="E2M3", attention_gemms=True))
    assert list(found.layers) == ["0.in_proj_weight", "0.out_proj"] and list(found.products) == ["0.scores", "0.values"]
