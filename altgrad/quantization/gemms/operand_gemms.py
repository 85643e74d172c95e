"""The three GEMMs of a linear layer on their six rounded operands, as autograd sees them.

    y = Q(x) Q(W)^T + b        dx = Q(dy) Q(W)        dW = Q(dy)^T Q(x)

Each Q is the rounding of one operand of one GEMM.  Operands of one tensor with the same cast share one rounding.
Otherwise the tensor itself is rounded once per cast, as on hardware: x in blocks along its last dimension for y, and x
again in blocks along its tokens for dW.  The gradient passes through the rounding of x and W unchanged
(straight-through estimator, Bengio et al. 2013), also where values saturate; the bias gets the sum of unrounded dy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.config.cast import Gemm
from altgrad.quantization.gemms import products
from altgrad.quantization.gemms.straight_through import differentiable_once
from altgrad.quantization.kernel.batch import round_batched
from altgrad.quantization.kernel.counting.slots import counted_in_backward
from altgrad.quantization.kernel.scaled_rounding import Mode, code_site, round_site
from altgrad.quantization.kernel.site import Reads, Site
from altgrad.quantization.kernel.tiles import split, tile_of


class Factor(NamedTuple):
    """A rounded tensor as a GEMM reads it, and the scale that its products get after they are summed (None: none)."""

    values: Tensor
    scale: Tensor | None = None


class GemmStructure(NamedTuple):
    """The structure of a layer's GEMMs, fixed when a graph is compiled.

    activation, weight, gradient: modes of the roundings of x, W and dy.  fprop, dgrad, wgrad: see `kernel.site`.
    """

    activation: tuple[Mode, ...]
    weight: tuple[Mode, ...]
    gradient: tuple[Mode, ...]
    fprop: tuple[int, int]  # of activation and weight
    dgrad: tuple[int, int]  # of gradient and weight
    wgrad: tuple[int, int]  # of gradient and activation
    wanted: tuple[Gemm, ...]  # the GEMMs that will be computed
    narrow: bool  # multiply bfloat16: values, or under real scales codes (see `Cast.bfloat16_obstacle`)
    counting: bool  # count the effects of the rounding of dy
    batched: bool = False  # one product for each matrix of a batch: x (b, rows, in), W (b, out, in)
    convolution: products.Convolution | None = None  # of x and W as they are, instead of matrices
    dtype: torch.dtype = torch.float32  # of y, and thereby of dy

    @classmethod
    def of(
        cls,
        sites: Sequence[Sequence[Site]],
        reads: Reads,
        wanted: tuple[Gemm, ...],
        *,
        use: int,
        narrow: bool,
        counting: bool,
    ) -> GemmStructure:
        """`sites`: the roundings of x, W and dy; `reads`: see `kernel.site`."""
        modes = [tuple(site.mode._replace(use=use) for site in found) for found in sites]
        return cls(*modes, *reads, wanted, narrow, counting)  # type: ignore[call-arg, arg-type]

    @property
    def of_x(self) -> list[int]:
        """Positions of the roundings of x that the wanted GEMMs read."""
        return sorted({self.fprop[0], self.wgrad[1]} if "wgrad" in self.wanted else {self.fprop[0]})

    @property
    def of_weight(self) -> list[int]:
        """Positions of the roundings of W that the wanted GEMMs read."""
        return sorted({self.fprop[1], self.dgrad[1]} if "dgrad" in self.wanted else {self.fprop[1]})

    @property
    def of_dy(self) -> list[int]:
        """Positions of the roundings of dy that the wanted GEMMs read."""
        return sorted({getattr(self, name)[0] for name in ("dgrad", "wgrad") if name in self.wanted})


def operand_gemms(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    key: Tensor,
    sites: Sequence[Sequence[Site]],
    structure: GemmStructure,
) -> tuple[Tensor, list[tuple[Site, Tensor]]]:
    """(x W^T + b in the dtype of the structure, [(site, counts)] for each rounding of x and W that was made).

    x (..., in), weight (out, in), bias (out,); sites: the roundings of x, W and dy.  The counts of dy reach their sites
    in the backward pass.
    """
    counters: list[Site] | None = None
    slots: Sequence[Tensor | None] = [None] * len(sites[2])
    if structure.counting and structure.of_dy:
        slots, counters = counted_in_backward(sites[2])
    states = [state for found in sites for site in found for state in (site.spec, site.history)]
    y, *counts = _OperandGemms.apply(x, weight, bias, structure, counters, key, *slots, *states)
    made = [sites[0][place] for place in structure.of_x] + [sites[1][place] for place in structure.of_weight]
    return y, list(zip(made, counts, strict=True))


class _OperandGemms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        structure: GemmStructure,
        counters: list[Site] | None,
        key: Tensor,
        *tensors: Any,
    ) -> Any:
        slots = len(structure.gradient)
        states = _pairs(tensors[slots:])
        counts: list[Tensor] = []

        def made(values: Tensor, places: list[int], modes: tuple[Mode, ...], first: int) -> dict[int, Factor]:
            rounded = {}
            for place in places:
                spec, history = states[first + place]
                rounded[place], counted = _rounded(values, spec, history, key, modes[place], structure)
                counts.append(counted)
            return rounded

        of_x = made(x, structure.of_x, structure.activation, 0)
        of_weight = made(weight, structure.of_weight, structure.weight, len(structure.activation))
        y = _product(of_x[structure.fprop[0]], of_weight[structure.fprop[1]], bias, structure)
        kept_weight = of_weight[structure.dgrad[1]] if "dgrad" in structure.wanted else (None, None)
        kept_x = of_x[structure.wgrad[1]] if "wgrad" in structure.wanted else (None, None)
        ctx.save_for_backward(*kept_weight, *kept_x, key, *tensors[-2 * slots :])
        ctx.structure, ctx.counters, ctx.shape, ctx.inputs = structure, counters, x.shape, len(tensors)
        ctx.weight_shape, ctx.dtype = weight.shape, x.dtype
        ctx.mark_non_differentiable(*counts)
        return y, *counts

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        dy, structure = gradients[0].contiguous(), ctx.structure
        weight, weight_scale, x, x_scale, key, *tensors = ctx.saved_tensors
        states = _pairs(tensors)
        rounded: dict[int, Factor] = {}
        in_slots: list[Tensor | None] = [None] * len(structure.gradient)
        beside = ctx.needs_input_grad[2] and dy.device.type != "cpu"
        for place in structure.of_dy:
            mode = structure.gradient[place]._replace(by_columns=beside)
            spec, history = states[place]
            rounded[place], counts = _rounded(dy, spec, history, key, mode, structure)
            if ctx.counters is not None:
                ctx.counters[place].add_counts(counts)
            elif structure.counting:
                in_slots[place] = counts
        dx = dw = None
        if "dgrad" in structure.wanted:
            dx = _dgrad(rounded[structure.dgrad[0]], Factor(weight, weight_scale), ctx.shape, structure, ctx.dtype)
        if "wgrad" in structure.wanted:
            dw = _wgrad(rounded[structure.wgrad[0]], Factor(x, x_scale), ctx.weight_shape, structure)
        bias = _bias_gradient(dy, structure) if ctx.needs_input_grad[2] else None
        rest = (None,) * (ctx.inputs - len(in_slots))
        return dx, dw, bias, None, None, None, *in_slots, *rest


def _rounded(
    x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode, structure: GemmStructure
) -> tuple[Factor, Tensor]:
    """The rounding of x as the GEMMs of the structure read it, and its counts."""
    if structure.narrow and mode.scale_leaves_the_sum:
        codes, scale, counts = code_site(x, spec, history, key, mode)
        return Factor(codes.bfloat16(), scale), counts
    values, counts = (round_batched if structure.batched else round_site)(x, spec, history, key, mode)
    return Factor(values.bfloat16() if structure.narrow else values), counts


def _bias_gradient(dy: Tensor, structure: GemmStructure) -> Tensor:
    """The sum of dy over all dimensions but that of the outputs, float32.

    On a GPU tiles along the tokens are added first, in the pass over dy that takes their amaxes.
    """
    outputs = dy if structure.convolution is None else dy.transpose(1, -1)
    rows = outputs.reshape(-1, outputs.shape[-1]).float()
    if rows.device.type != "cpu":
        for mode in structure.gradient:
            if not mode.last and (tile := tile_of(mode.granularity)) is not None and tile[0] == 1:
                return summed_by_tiles(rows, mode.granularity)
    return rows.sum(0)


def summed_by_tiles(rows: Tensor, granularity: str) -> Tensor:
    """The sum of x (rows, columns) over its rows, (columns,): each 1 x B tile along them first."""
    return split(rows, granularity, last=False).sum(dim=(1, 3)).sum(dim=0)


def _product(x: Factor, weight: Factor, bias: Tensor | None, structure: GemmStructure) -> Tensor:
    dtype = structure.dtype
    if structure.convolution is not None:
        return structure.convolution.product(x.values, weight.values, bias).to(dtype)
    if structure.batched:
        return products.batched(x.values, weight.values.transpose(-1, -2)).to(dtype)
    if x.scale is None and weight.scale is None:
        return products.product(x.values, weight.values, bias, dtype)
    y = products.scaled(products.product(x.values, weight.values, None), x.scale, _across(weight.scale))
    return (y if bias is None else y + bias).to(dtype)


def _dgrad(dy: Factor, weight: Factor, shape: torch.Size, structure: GemmStructure, dtype: torch.dtype) -> Tensor:
    if structure.convolution is not None:
        return structure.convolution.dgrad(dy.values, weight.values, shape).to(dtype)
    if structure.batched:
        return products.batched(dy.values, weight.values).to(dtype)
    if dy.scale is None and weight.scale is None:
        return products.dgrad(dy.values, weight.values, shape, dtype)
    return products.scaled(products.dgrad(dy.values, weight.values, shape), dy.scale, weight.scale).to(dtype)


def _wgrad(dy: Factor, x: Factor, shape: torch.Size, structure: GemmStructure) -> Tensor:
    if structure.convolution is not None:
        return structure.convolution.wgrad(dy.values, x.values, shape)
    if structure.batched:
        return products.batched(dy.values.transpose(-1, -2), x.values)
    return products.scaled(products.wgrad(dy.values, x.values), _across(dy.scale), x.scale)


def _across(scale: Tensor | None) -> Tensor | None:
    """The scale of an operand that the GEMM reads transposed."""
    return None if scale is None else scale.t()


def _pairs(states: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(spec, history) of each rounding."""
    return list(zip(states[::2], states[1::2], strict=True))
