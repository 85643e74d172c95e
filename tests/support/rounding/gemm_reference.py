"""The three GEMMs of a product with rounded operands, slowly: rounded by ml_dtypes, multiplied in float64.

The scale is the smallest power of two under which the largest magnitude does not exceed the format's largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.layers import gemms_of
from altgrad.quantization.quantize import quantize_model

_LARGEST = 7.5  # of E2M3, whose few binades let a scale show: E4M3 hardly depends on its block


def e2m3(x: np.ndarray, block: int | None = None, axis: int = -1) -> np.ndarray:
    """x rounded to E2M3: with one scale, or in blocks along an axis (0: one scale for all values along it)."""
    if block is None:
        return _rounded(x)
    moved = np.moveaxis(x, axis, -1)
    out = np.empty_like(moved)
    for place in np.ndindex(moved.shape[:-1]):
        length = moved.shape[-1]
        for start in range(0, length, block or length):
            part = slice(start, start + (block or length))
            out[place][part] = _rounded(moved[place][part])
    return np.moveaxis(out, -1, axis)


def _rounded(x: np.ndarray) -> np.ndarray:
    amax = np.abs(x).max()
    scale = 2.0 ** np.ceil(np.log2(amax / _LARGEST)) if amax else 1.0
    return (x / scale).astype(np.float32).astype(ml_dtypes.float6_e2m3fn).astype(np.float64) * scale


def adapted(model: nn.Module, **fields: Any) -> None:
    """Let a model compute through its adapters without rounding; in FP32 it would run the plain layers instead."""
    quantize_model(model, Recipe(format="E2M1", **fields))
    for layer in gemms_of(model):
        layer.bypass = 1


class ReferenceGemm(torch.autograd.Function):
    """y = x W^T of x (m, k), W (n, k), float64; `block`: along what each GEMM contracts, None: one scale per tensor.

    With `row` every operand has one scale for each row of its tensor, whatever is contracted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, block: int | None = None, row: bool = False) -> Tensor:
        a, w = x.detach().numpy(), weight.detach().numpy()
        ctx.kept = a, w, block, row
        length = 0 if row else block
        return torch.from_numpy(e2m3(a, length, 1) @ e2m3(w, length, 1).T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        a, w, block, row = ctx.kept
        dy = gradients[0].numpy()
        length, other = (0, 1) if row else (block, 0)
        dx = e2m3(dy, length, 1) @ e2m3(w, length, other)
        dw = e2m3(dy, length, other).T @ e2m3(a, length, other)
        return torch.from_numpy(dx), torch.from_numpy(dw), None, None


def reference_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    """`functional.linear` through `ReferenceGemm`; x (..., in)."""
    y = ReferenceGemm.apply(x.reshape(-1, x.shape[-1]), weight, how.get("block"), how.get("row", False))
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


# how operands are scaled: fields of a recipe, and of `reference_linear`
HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tensor": ({}, {}),
    "row": ({"scale_granularity": "row"}, {"row": True}),
    "block": ({"scale_granularity": "1x4"}, {"block": 4}),
}


def same_gemms(rounded: nn.Module, reference: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-6) -> None:
    """Assert that a module and a reference in float64, with its parameters by name, agree, and all gradients too."""
    with torch.no_grad():  # magnitudes over some octaves, without which scales of neighbouring blocks are alike
        for parameter in rounded.parameters():
            parameter.mul_(2.0 ** torch.randint(-4, 1, parameter.shape))
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
