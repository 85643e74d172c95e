"""The products themselves, plain and of rounded operands: matrices, batches of matrices, and convolutions.

Rounded operands may be multiplied in bfloat16: fast on a GPU's tensor cores, and half the memory for backward.

A value of at most 8 significant bits is the same number in bfloat16 and in float32, so that the cast of such an operand
is exact (`Cast.bfloat16_obstacle` tells when it is not).  Products of two of them are exact in float32, in which they
are summed and returned.  The operands are saved for the backward pass in bfloat16.

Under a real scale a value has more bits, its code does not.  Where the scale is the same for all that a sum contracts,
codes are multiplied, and the scales are applied to the sum, as FP8 tensor cores do.  Against products of values the
result differs by a few roundings of float32, but no operand is ever rounded to bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional, grad


def bfloat16_pays(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: on GPUs of compute capability 8.0 and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class Convolution(NamedTuple):
    """A convolution of tensors with one scale each: x (batch, in, ...), W (out, in / groups, ...)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """y (batch, out, ...)."""
        y: Tensor = _CONVOLUTIONS[len(self.stride)](x, weight, bias, *self)
        return y

    def dgrad(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """dx, in the shape of x."""
        dx: Tensor = _DGRADS[len(self.stride)](shape, weight, dy, *self)
        return dx

    def wgrad(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """dW, in the shape of W."""
        dw: Tensor = _WGRADS[len(self.stride)](x, shape, dy, *self)
        return dw


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_DGRADS = {1: grad.conv1d_input, 2: grad.conv2d_input, 3: grad.conv3d_input}
_WGRADS = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}


def plain(
    a: Tensor, b: Tensor, bias: Tensor | None, batched: bool = False, convolution: Convolution | None = None
) -> Tensor:
    """The product of unrounded operands, as the plain layer computes it."""
    if convolution is not None:
        return convolution.product(a, b, bias)
    return torch.matmul(a, b.transpose(-1, -2)) if batched else functional.linear(a, b, bias)


def product(a: Tensor, b: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """a b^T + bias, summed in float32 and rounded once to `dtype`; a (..., k), b (n, k), both float32 or both bfloat16.

    Rotated operands are padded to a multiple of the rotation's size; both are padded alike, with zeros before the
    rotation, so that the product does not change.  On a CPU, where no bfloat16 product returns float32, bfloat16
    operands are cast back to float32, which is exact.  On a GPU a bfloat16 result gets the bias in bfloat16, as within
    autocast: no float32 result is written and read for it.
    """
    if a.device.type == "cpu" or a.dtype == torch.float32:
        return functional.linear(a.float(), b.float(), bias).to(dtype)
    if dtype == a.dtype:
        return functional.linear(a, b, None if bias is None else bias.to(dtype))
    y = torch.mm(a.reshape(-1, a.shape[-1]), b.t(), out_dtype=torch.float32)
    y = y.view(*a.shape[:-1], b.shape[0])
    return (y if bias is None else y + bias).to(dtype)


def scaled(sums: Tensor, *scales: Tensor | None) -> Tensor:
    """Sums of products of codes, float32, times the scales of both operands, one after the other (None: no scale)."""
    for scale in scales:
        sums = sums if scale is None else sums * scale
    return sums


def dgrad(dy: Tensor, weight: Tensor, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """dy W, summed in float32 and rounded once to `dtype`, in the shape of x; dy (..., out), weight (out, in)."""
    rows = dy.reshape(-1, dy.shape[-1])
    return _mm(rows, weight, dtype).view(shape)


def wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x, float32 (out, in); dy (..., out), x (..., in)."""
    return _mm(dy.reshape(-1, dy.shape[-1]).t(), x.reshape(-1, x.shape[-1]))


def batched(a: Tensor, b: Tensor) -> Tensor:
    """a b, float32, for each a (b, rows, k) and b (b, k, columns) of a batch, both float32."""
    return torch.matmul(a, b)


def _mm(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    if a.device.type == "cpu" or a.dtype == torch.float32:
        return torch.mm(a.float(), b.float()).to(dtype)
    return torch.mm(a, b) if dtype == a.dtype else torch.mm(a, b, out_dtype=torch.float32).to(dtype)
