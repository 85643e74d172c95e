"""The native path: the three GEMMs of a linear layer on FP8 tensor cores, from the codes that the simulation rounds to.

Rounding, scale and counts are those of the simulated path: our kernel rounds x / scale to the grid, and the cast of a
grid value to float8 is exact for every rounding and overflow rule.  `scaled_mm` multiplies the codes, sums in float32
(without fast accumulation), applies both scales to the sum and returns float32.  With one scale per tensor the
result differs from the simulated one only by the order and, on tensor cores, the width of the sums.

A scale can be taken out of a sum only if it is constant along the contraction dimension.  With one scale per row,

    y  = x W^T    contracts in-features: rows of x and of W, as in the simulation
    dx = dy W     contracts out-features: W is rounded again, one scale per column
    dW = dy^T x   contracts tokens: dy and x are rounded again, one scale per column

so that dx and dW differ from the simulation, which rounds each tensor once, with the row scales of y.  Counts are those
of the first rounding.  Tensor cores lose a product of two scales below 2^-149 or above 2^128.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad import torch_private
from altgrad.quantization.gemms.straight_through import differentiable_once
from altgrad.quantization.kernel.counting.slots import counted_in_backward
from altgrad.quantization.kernel.scaled_rounding import Mode, code_site
from altgrad.quantization.kernel.site import Site

DIVISOR = 16  # of both dimensions of an FP8 operand (cuBLASLt)
FLOAT8 = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}
_LEAST_CAPABILITY = (8, 9)


class Codes(NamedTuple):
    """An operand as an FP8 GEMM reads it: values (rows, contracted) float8; scale 0-d or (rows, 1) float32."""

    values: Tensor
    scale: Tensor


class NativeStructure(NamedTuple):
    """The structure of a layer's products, fixed when a graph is compiled; tuples are in the order of `GEMM_SITES`.

    `keep`: save tensors for a backward pass.
    """

    dtypes: tuple[torch.dtype, ...]
    modes: tuple[Mode, ...]
    keep: bool

    def roundings(self, key: Tensor, states: Sequence[Tensor]) -> list[_Rounding]:
        """`states`: spec and history of each site, one after the other."""
        found = zip(self.dtypes, self.modes, states[::2], states[1::2], strict=True)
        return [_Rounding(dtype, mode, key, spec, history) for dtype, mode, spec, history in found]


class _Rounding(NamedTuple):
    """How a tensor becomes codes: their dtype and the mode, and what the kernel reads (see `kernel.site`)."""

    dtype: torch.dtype
    mode: Mode
    key: Tensor
    spec: Tensor
    history: Tensor

    def codes(self, x: Tensor) -> tuple[Codes, Tensor]:
        """An operand (rows, contracted) rounded to codes, and its counts."""
        values, scale, counts = code_site(x, self.spec, self.history, self.key, self.mode)
        return Codes(values.to(self.dtype).contiguous(), scale), counts

    def turned(self, codes: Codes, x: Tensor) -> Codes:
        """The operand of a GEMM that contracts the first dimension of x: its codes, transposed in memory.

        With one scale per row it is rounded again, with one scale per column.
        """
        if self.mode.granularity == "row":
            return self.codes(x.t().contiguous())[0]
        return Codes(codes.values.t().contiguous(), codes.scale)


def multiply(a: Codes, b: Codes) -> Tensor:
    """a b^T in float32, (rows of a, rows of b); both contract their last dimension."""
    scale_b = b.scale if b.scale.ndim == 0 else b.scale.t()
    return torch_private.scaled_mm(a.values, b.values.t(), a.scale, scale_b)


def check_native(name: str, weight: Tensor, sites: Sequence[Site]) -> None:
    """Raise ValueError, in one line, if the shape or the device of layer `name` has no FP8 GEMM."""
    out, into = weight.shape
    if out % DIVISOR or into % DIVISOR:
        raise ValueError(
            f"native_fp8=True: layer {name} has a weight of shape ({out}, {into}); FP8 GEMMs need multiples "
            f"of {DIVISOR}"
        )
    obstacle = _obstacle(
        weight.device, *(FLOAT8[site.format.name] for site in sites), sites[0].mode.granularity == "row"
    )
    if obstacle is not None:
        raise ValueError(f"native_fp8=True: {obstacle}; use native_fp8=False")


@functools.cache
def _obstacle(
    device: torch.device, weight: torch.dtype, activation: torch.dtype, gradient: torch.dtype, by_row: bool
) -> str | None:
    """Why a device has no FP8 GEMMs (generation, or its error on a small product of each kind); None if it has."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return f"{name} has compute capability {major}.{minor}; FP8 tensor cores need 8.9 or later"
    scale = torch.ones((DIVISOR, 1) if by_row else (), dtype=torch.float32, device=device)
    for pair in ((activation, weight), (gradient, weight), (gradient, activation)):
        a, b = (
            Codes(torch.ones(DIVISOR, DIVISOR, dtype=torch.float32, device=device).to(dtype), scale) for dtype in pair
        )
        try:
            multiply(a, b)
        except (RuntimeError, ValueError) as error:
            return f"{device} does not multiply {pair[0]} by {pair[1]} ({str(error).strip().splitlines()[0]})"
    return None


def refuse_rows(name: str, shape: torch.Size) -> None:
    """Raise ValueError for an input with a number of rows that the FP8 GEMM for dW cannot contract."""
    raise ValueError(
        f"native_fp8=True: layer {name} gets an input of shape {tuple(shape)}, {shape[:-1].numel()} rows; the FP8 GEMM "
        f"for dW contracts them and needs a multiple of {DIVISOR}"
    )


def native_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, key: Tensor, sites: Sequence[Site], *, use: int, counting: bool
) -> tuple[Tensor, list[tuple[Site, Tensor]]]:
    """(x W^T + b in float32, [(site, counts)] of x and W), with the three GEMMs on FP8 codes.

    x (..., in), weight (out, in), bias (out,); `sites` in the order of `GEMM_SITES`.  The gradient passes through the
    rounding unchanged (straight-through estimator).  The bias gets the sum of the unrounded dy.  `counting`: the counts
    of dy reach their site in the backward pass.  If gradients are computed, the number of rows of x must be a multiple
    of 16.  `use`: see `Mode`.
    """
    keep = torch.is_grad_enabled()
    slot: Tensor | None = None
    counter: Site | None = None
    if counting and keep:
        (slot,), counters = counted_in_backward(sites[2:])
        counter = None if counters is None else counters[0]
    rows = x.reshape(-1, x.shape[-1])
    structure = NativeStructure(
        tuple(FLOAT8[site.format.name] for site in sites), tuple(site.mode._replace(use=use) for site in sites), keep
    )
    states = [state for site in sites for state in (site.spec, site.history)]
    y, of_weight, of_x = _NativeLinear.apply(rows, weight, bias, slot, counter, structure, key, *states)
    return y.view(*x.shape[:-1], -1), [(sites[1], of_x), (sites[0], of_weight)]


class _NativeLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slot: Tensor | None,
        counter: Site | None,
        structure: NativeStructure,
        key: Tensor,
        *states: Tensor,
    ) -> Any:
        of_weight, of_x, _ = structure.roundings(key, states)
        codes_w, counts_w = of_weight.codes(weight)
        codes_x, counts_x = of_x.codes(x)
        y = multiply(codes_x, codes_w)
        if bias is not None:
            y = y + bias
        if structure.keep:
            turned_w, turned_x = of_weight.turned(codes_w, weight), of_x.turned(codes_x, x)
            ctx.save_for_backward(*turned_w, *turned_x, key, *states)
            ctx.structure, ctx.counter = structure, counter
        ctx.mark_non_differentiable(counts_w, counts_x)
        return y, counts_w, counts_x

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        dy = gradients[0].contiguous()
        w_values, w_scale, x_values, x_scale, key, *states = ctx.saved_tensors
        of_dy = ctx.structure.roundings(key, states)[2]
        codes, counts = of_dy.codes(dy)
        dx = multiply(codes, Codes(w_values, w_scale)) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            dw = multiply(of_dy.turned(codes, dy), Codes(x_values, x_scale))
        bias = dy.sum(0) if ctx.needs_input_grad[2] else None
        if ctx.counter is not None:
            ctx.counter.add_counts(counts)
        found = counts if ctx.counter is None and ctx.needs_input_grad[3] else None
        return dx, dw, bias, found, None, None, None, *(None for _ in states)
