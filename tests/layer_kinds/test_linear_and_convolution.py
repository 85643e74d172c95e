"""Linear layers of all kinds and convolutions against their three GEMMs by hand; copied, pickled, made plain."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.config.recipe import Recipe
from altgrad.quantization.adapters.linear import RoundedTransposedLinear
from altgrad.quantization.adapters.registry import register_gemm
from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.quantize import quantize_model
from tests.support.rounding.gemm_reference import HOW, adapted, reference_linear, same_gemms

FP32 = Recipe(format="FP32")
Linear = Callable[..., Tensor]


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
    quantize_model(model, Recipe(format="E2M3", **fields))
    transposed = lambda x, **p: reference_linear(x, p["0_weight"].t(), p["0_bias"], **reference)  # noqa: E731
    same_gemms(model, transposed, torch.randn(2, 3, 10))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("kind", "groups", "sizes"), [(nn.Conv1d, 1, (9,)), (nn.Conv2d, 2, (5, 6)), (nn.Conv3d, 1, (3, 4, 3))]
)
def test_a_convolution_is_the_gemm_that_it_is(kind: Any, groups: int, sizes: tuple[int, ...], how: str) -> None:
    fields, reference = HOW[how]
    kernel, stride, padding, dilation = (3, 2, 1, 2) if kind is nn.Conv1d else (2, 1, 1, 2)
    layer = kind(4, 6, kernel, stride, padding, dilation, groups)
    quantize_model(layer, Recipe(format="E2M3", **fields))
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

    same_gemms(layer, by_hand, x)


def test_padding_of_any_mode_and_a_single_sample_are_those_of_the_plain_convolution() -> None:
    for options in ({"padding": "same"}, {"padding": 2, "padding_mode": "circular"}, {"padding": "valid"}):
        plain = nn.Conv2d(3, 4, 4, **options)
        rounded = copy.deepcopy(plain)
        adapted(rounded)
        for x in (torch.randn(2, 3, 7, 6), torch.randn(3, 7, 6)):
            assert torch.allclose(rounded(x), plain(x), atol=1e-6), options


class Scaled(nn.Linear):
    """A subclass with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x * 3, weight=self.weight / 5, bias=self.bias) + x.sum()


class Alike(nn.Linear):
    """A subclass that computes as the plain layer."""


def test_a_subclass_of_linear_keeps_its_own_forward_pass() -> None:
    layer = Scaled(6, 4)
    quantize_model(layer, Recipe(format="E2M3"))
    same_gemms(layer, lambda x, weight, bias: reference_linear(x * 3, weight / 5, bias) + x.sum(), torch.randn(3, 6))
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
