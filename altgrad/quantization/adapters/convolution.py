"""Convolutions, rounded as the GEMM that they are: each place of the output times the patch of input that it reads.

    x (batch x places, in / groups x kernel)   W (out / groups, in / groups x kernel)   y (batch x places, out / groups)

once for each group.  With one scale per tensor the roundings of x, W and dy do not depend on the layout, and x itself
is rounded instead of its patches: each value once, also those that no patch reads (a 1 x 1 kernel with stride 2).
Rows, blocks and rotations run along what the GEMM contracts, in-channels first, then the places of the kernel; there
the patches are made, k^2 times the memory of x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.config.cast import GEMM_SITES
from altgrad.quantization.gemms.products import Convolution
from altgrad.quantization.gemms.rounded_gemm import autocast_dtype
from altgrad.quantization.kernel.batch import as_matrix, from_matrix, one_scale
from altgrad.quantization.layers import RoundedLayer


class RoundedConvolution(RoundedLayer):
    """`nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`: weight (out, in / groups, ...), input (batch, in, ...) or (in, ...)."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    only_linear = False

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in, ...) or (in, ...) -> (batch, out, ...) or (out, ...)"""
        self.check_input(x)
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return self._convolution(x.float()).to(x.dtype)
        with torch.autocast(kind, enabled=False):
            y = self._convolution(x.float())
        return y.to(autocast_dtype(x))

    def _convolution(self, x: Tensor) -> Tensor:
        single = x.ndim == self.weight.ndim - 1
        if single:
            x = x.unsqueeze(0)
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            around = _around(self.weight.shape[2:], padding, self.dilation)
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = functional.pad(x, around, mode=mode), (0,) * len(self.stride)
        weight = self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        if self.bypass or self.plain or self._in_one_piece():
            how = Convolution(self.stride, padding, self.dilation, self.groups)
            y = self.compute(x, weight, bias, convolution=how)
        else:
            y = self._of_patches(x, weight, bias, padding)
        return y.squeeze(0) if single else y

    def _of_patches(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        """y (batch, out, ...), float32, from the product of patches and weights."""
        found, places = patches(x, self.weight.shape[2:], self.stride, padding, self.dilation, self.groups)
        if self.groups == 1:
            y = self.compute(found[0], weight.flatten(1), bias).unsqueeze(0)
        else:
            y = self.compute(found, self._in_groups(weight), None, batched=True)
        # (groups, batch x places, out / groups) -> (batch, out, places)
        y = y.unflatten(1, (x.shape[0], -1)).permute(1, 0, 3, 2).flatten(1, 2).unflatten(-1, places)
        return y if bias is None or self.groups == 1 else y + bias.view(-1, *(1 for _ in places))

    def _in_one_piece(self) -> bool:
        return all(one_scale(site.mode) for tensor in GEMM_SITES for site in self.roundings(tensor))

    def _in_groups(self, weight: Tensor) -> Tensor:
        """(groups, out / groups, in / groups x kernel)"""
        return weight.flatten(1).unflatten(0, (self.groups, -1))

    def matrices(self, weight: Tensor) -> list[Tensor]:
        if self._in_one_piece():
            return [weight]
        if self.groups == 1:
            return [weight.flatten(1)]
        if weight.shape != self.weight.shape:
            raise ValueError(f"layer {self.name}: blocks of a grouped convolution cannot be divided among processes")
        return [as_matrix(self._in_groups(weight), self.site("weight").mode)]

    def from_matrices(self, matrices: Sequence[Tensor]) -> Tensor:
        found = matrices[0]
        if self.groups > 1 and not self._in_one_piece():
            found = from_matrix(found, self._in_groups(self.weight), self.site("weight").mode)
        return found.reshape(-1 if found.numel() else 0, *self.weight.shape[1:])


def _around(kernel: Sequence[int], padding: tuple[int, ...] | str, dilation: Sequence[int]) -> list[int]:
    """The padding before and after each axis, the last axis first, as `functional.pad` takes it."""
    if padding == "same":
        both = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
        return [width for total in reversed(both) for width in (total // 2, total - total // 2)]
    widths = [0] * len(kernel) if isinstance(padding, str) else list(padding)
    return [width for one in reversed(widths) for width in (one, one)]


def patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, tuple[int, ...]]:
    """(patches, places) of x (batch, in, ...): what a kernel reads, (groups, batch x places, in / groups x kernel)."""
    x = functional.pad(x, _around(kernel, tuple(padding), dilation))
    for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, apart * (size - 1) + 1, step)[..., ::apart]
    places = tuple(x.shape[2 : 2 + len(kernel)])
    x = x.unflatten(1, (groups, -1))  # (batch, groups, in / groups, places ..., kernel ...)
    dims = len(kernel)
    order = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    return x.permute(order).flatten(2 + dims).flatten(1, 1 + dims), places
