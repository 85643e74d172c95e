"""Rounding in the forward and in the backward pass, as autograd sees it.

The gradient passes through the rounding of x and W as if it were the identity (straight-through estimator, Bengio et
al. 2013), also where values saturate.  The counts of the output gradient come out of the backward pass as the gradient
of a dummy input, so that a compiled graph needs no side effect there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from altgrad.quantization.site import Mode, round_site


class RoundOperand(torch.autograd.Function):
    """x -> (Q(x), counts); gradient straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> Any:
        rounded, counts = round_site(x, spec, history, key, mode)
        ctx.mark_non_differentiable(counts)
        return rounded, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None, None, None


class RoundGradient(torch.autograd.Function):
    """y -> y, and backward dy -> Q(dy); the bias gets sum(dy), `slot` (if any) gets the counts as its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        bias: Tensor | None,
        slot: Tensor | None,
        spec: Tensor,
        history: Tensor,
        key: Tensor,
        mode: Mode,
    ) -> Tensor:
        ctx.save_for_backward(spec, history, key)
        ctx.mode = mode
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        spec, history, key = ctx.saved_tensors
        rounded, counts = round_site(gradient.contiguous(), spec, history, key, ctx.mode)
        bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return rounded, bias, counts if ctx.needs_input_grad[2] else None, None, None, None, None
