"""Counts rounded products without asking the quantiser: a product is rounded if both operands have few bits.

A value of E4M3 times a power of two has at most 4 significant bits, so that the last 20 bits of its float32 are zero.
Among unrounded values that is true of hardly any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_LAST_BITS = (1 << 20) - 1


def few_bits(x: Tensor) -> bool:
    """Whether every value has at most 4 significant bits."""
    return x.dtype == torch.float32 and not bool((x.contiguous().view(torch.int32) & _LAST_BITS).any())


class _Products(TorchDispatchMode):
    """Adds up the FLOPs of matrix products and convolutions, and of those with rounded operands."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            flops = int(formula(*args, **kwargs, out_val=result))
            name = func.overloadpacket.__name__
            operands = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
            if name == "convolution_backward":  # for dx it reads dy and W, for dW dy and x
                dy, x, weight, *_, wanted = args
                operands = [dy, *([weight] if wanted[0] else []), *([x] if wanted[1] else [])]
            self.total += flops
            self.rounded += flops if all(few_bits(x) for x in operands) else 0
        return result


def counted_share(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Share of the FLOPs of one step's products, forward and backward, whose operands all have few bits."""
    products = _Products()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH), products:
        torch.autograd.grad(loss(), parameters, allow_unused=True)
    return products.rounded / products.total
