"""Products of rounded operands in bfloat16: exact, made for a GPU's tensor cores, and half the memory for backward.

A value of at most 8 significant bits is the same number in bfloat16 as in float32, so that casting rounded operands
changes nothing (`Recipe.bfloat16_obstacle` says where that holds); products of two of them are exact in float32, in
which they are summed and returned.  What is kept for the backward pass are the operands in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def bfloat16_pays(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32: on tensor cores (compute capability 8.0)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def full_precision_sums() -> None:
    """Switch off, for the whole process, what would make products of float32 or sums of bfloat16 products inexact.

    TF32 keeps 10 mantissa bits of a float32 operand; reduced-precision reductions add partial sums in bfloat16.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b and its gradients dx = dy W, dW = dy^T x, with all three GEMMs on bfloat16 operands.

    x (..., in), weight (out, in), bias (out,) without gradient, dy and the result (..., out): all float32.  x, weight
    and dy hold values that bfloat16 has; others are rounded to it.
    """
    y: Tensor = _BFloat16Linear.apply(x, weight, bias)
    return y


class _BFloat16Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow_x, narrow_w = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(narrow_x, narrow_w)
        return _product(narrow_x, narrow_w, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = gradients[0].bfloat16()
        dx = _product(dy, weight.t(), None) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        return dx, _product(dy_rows.t(), x_rows.t(), None), None


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b^T + bias, float32; a (..., k), b (n, k): bfloat16.

    A CPU has no product of bfloat16 that returns float32: there the operands go back to float32, unchanged.
    """
    if a.device.type == "cpu":
        return functional.linear(a.float(), b.float(), bias)
    y = torch.mm(a.reshape(-1, a.shape[-1]), b.t(), out_dtype=torch.float32)
    y = y.view(*a.shape[:-1], b.shape[0])
    return y if bias is None else y + bias
