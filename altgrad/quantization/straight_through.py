"""Rounding in the forward and in the backward pass, as autograd sees it.

The gradient passes through the rounding of x and W as if it were the identity (straight-through estimator, Bengio et
al. 2013), also where values saturate.  Rounding the output gradient has no second derivative: a penalty on gradients
that pass a rounded layer is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad.quantization.kernel.site import Mode, Site, round_site

Backward = Callable[..., Any]


def differentiable_once(backward: Backward) -> Backward:
    """As torch's `once_differentiable`, with an error that says what cannot be differentiated twice, and what to do."""

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        if not (torch.is_grad_enabled() and any(gradient.requires_grad for gradient in gradients)):
            return outputs
        refusal = torch._C._functions.DelayedError(_TWICE, 1)
        return tuple(None if out is None else refusal(out.detach().requires_grad_()) for out in outputs)

    return once


_TWICE = (
    b"double backward over a rounded layer is not supported: the rounding of its output gradient has no derivative; "
    b"compute gradient penalties within `unrounded(layers)`"
)


class RoundOperand(torch.autograd.Function):
    """x -> (Q(x), counts); gradient straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> Any:
        rounded, counts = round_site(x, spec, history, key, mode)
        ctx.mark_non_differentiable(counts)
        return rounded, counts

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None, None, None


class RoundGradient(torch.autograd.Function):
    """y -> y, and backward dy -> Q(dy); the bias gets sum(dy).

    The counts go to `counter`, or without one to `slot` as its gradient; nothing is counted without a slot.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        bias: Tensor | None,
        slot: Tensor | None,
        counter: Site | None,
        spec: Tensor,
        history: Tensor,
        key: Tensor,
        mode: Mode,
    ) -> Tensor:
        ctx.save_for_backward(spec, history, key)
        ctx.mode, ctx.counter = mode, counter
        return y.view_as(y)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        spec, history, key = ctx.saved_tensors
        rounded, counts = round_site(gradient.contiguous(), spec, history, key, ctx.mode)
        bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        if ctx.counter is not None:
            ctx.counter.add_counts(counts)
        found = counts if ctx.counter is None and ctx.needs_input_grad[2] else None
        return rounded, bias, found, None, None, None, None, None
