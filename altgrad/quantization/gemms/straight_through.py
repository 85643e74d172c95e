"""Autograd's rule for rounding: the straight-through estimator, once differentiable.

The gradient passes through the rounding of x and W unchanged (straight-through estimator, Bengio et al. 2013), also
where values saturate.  The rounding of the output gradient has no derivative, so that differentiating twice through a
rounded layer, as a gradient penalty does, raises an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad import torch_private

Backward = Callable[..., Any]


def differentiable_once(backward: Backward) -> Backward:
    """As torch's `once_differentiable`, with an error message that names the reason and a way out.

    Torch's gives a constant where the incoming gradient is one, as above the last layer of a critic, although dx = dy W
    depends on W: a gradient penalty would silently lose that part.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        # no graph of the backward pass is wanted; torch refuses that of compiled code itself
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return outputs
        return torch_private.without_derivative(outputs, _TWICE)

    return once


_TWICE = (
    b"double backward over a rounded layer is not supported: the rounding of its output gradient has no derivative; "
    b"compute gradient penalties within `unrounded(layers)`"
)
