"""One product of a layer with rounded operands: its roundings, its random numbers, and its three GEMMs.

    y = Q_a(x) Q_w(W)^T + b        dx = Q_g(dy) Q_w(W)        dW = Q_g(dy)^T Q_a(x)

Accumulation is in FP32.  The bias and its gradient (the sum of the unrounded dy) are not rounded.  Each site counts
the effects of its rounding on every step (see `kernel.counting`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from altgrad import torch_private
from altgrad.config.cast import GEMM_SITES, Gemm, GemmSite
from altgrad.quantization.gemms import native_fp8, products
from altgrad.quantization.gemms.layer_roundings import LayerRoundings
from altgrad.quantization.gemms.operand_gemms import GemmStructure, operand_gemms
from altgrad.quantization.gemms.sharded import Cut, is_sharded, local_product
from altgrad.quantization.kernel.site import OPERAND_TENSORS

Watch = Callable[["RoundedGemm", tuple[Gemm, ...]], AbstractContextManager[None]]


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a product with x has within autocast, which leaves float64 alone."""
    return x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(x.device.type)


class RoundedGemm(LayerRoundings):
    """A layer's three GEMMs with rounded operands; see `LayerRoundings` for the roundings.

    `watch` is told of the products that are left unrounded by `bypass`, and of the GEMMs they belong to.
    """

    watch: Watch | None

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, batched: bool = False) -> Tensor:
        """x W^T + b with rounded operands, in the dtype that the plain product would have.

        x (..., in), weight (out, in), bias (out,); batched: x (b, rows, in), weight (b, out, in), without bias.
        Raises TypeError if x is not floating.
        """
        self.check_input(x)
        kind = x.device.type
        bias = None if bias is None else bias.float()
        if not torch.is_autocast_enabled(kind):  # checked first: torch caches no graph that enters autocast
            return self.compute(x, weight.float(), bias, batched, dtype=x.dtype)
        dtype = autocast_dtype(x)
        with torch.autocast(kind, enabled=False):
            return self.compute(x, weight.float(), bias, batched, dtype=dtype)

    def check_input(self, x: Tensor) -> None:
        """Raise TypeError for whole or complex numbers, which the plain layer refuses, too.

        The output has the dtype of the input: whole numbers would cut products off, and a cast drops imaginary parts.
        """
        if not x.is_floating_point():
            raise TypeError(f"layer {self.name}: its input has dtype {x.dtype}; it multiplies floating numbers")

    def compute(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batched: bool = False,
        convolution: products.Convolution | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """As `multiply`; weight and bias float32, x of any float dtype, and the result of `dtype`.

        convolution: x (batch, in, ...), weight (out, in / groups, ...).
        """
        if self.bypass:
            if self.watch is None:
                return products.plain(x.float(), weight, bias, batched, convolution).to(dtype)
            with self.watch(self, _wanted(x, weight)):
                return products.plain(x.float(), weight, bias, batched, convolution).to(dtype)
        if self.plain:
            return products.plain(x.float(), weight, bias, batched, convolution).to(dtype)
        if is_sharded(weight):
            if batched or convolution is not None or self.native_fp8:
                raise ValueError(f"layer {self.name}: of sharded weights only those of linear layers are multiplied")
            part = local_product(self.name, x.float(), weight, bias, self.own_scales)  # type: ignore[arg-type]
            y = self._rounded(part.x, part.weight, part.bias, cuts=part.cuts)
            return part.joined(y, weight, bias).to(dtype)  # type: ignore[arg-type]
        return self._rounded(x, weight, bias, batched, convolution, dtype=dtype)

    def _rounded(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batched: bool = False,
        convolution: products.Convolution | None = None,
        cuts: Mapping[GemmSite, Cut] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """As `compute`, with rounded operands; cuts: how tensors are divided among processes."""
        self._check_transforms()
        key, use = self._next_draw() if self.stochastic else (self.key, 0)
        if self.native_fp8 and not batched and x.numel():
            return self._native(x.float(), weight, bias, key, use).to(dtype)
        training = torch.is_grad_enabled()
        wanted = _wanted(x, weight)
        sites = [self.roundings(tensor) for tensor in OPERAND_TENSORS]
        narrow = self.multiplies_bfloat16 and not batched and convolution is None
        structure = GemmStructure.of(sites, self.reads, wanted, use=use, narrow=narrow, counting=self.counting)
        structure = structure._replace(dtype=dtype)
        if batched or convolution is not None:
            structure = structure._replace(batched=batched, convolution=convolution)
        own_key = key
        for tensor, cut in (cuts or {}).items():
            modes = tuple(cut.applied(mode, self.name) for mode in getattr(structure, tensor))
            structure, key = structure._replace(**{tensor: modes}), cut.placed(own_key)  # type: ignore[arg-type]
        y, counts = operand_gemms(x, weight, bias, key, sites, structure)
        if training and self.counting:
            for site, counted in counts:
                site.add_counts(counted)
        return y

    def _next_draw(self) -> tuple[Tensor, int]:
        """(key, number of earlier draws with it), so that each use of the layer draws independent numbers.

        A recomputation during the backward pass (activation checkpointing) repeats the draw of its forward pass, also
        if other micro-batches or held-out batches had keys in between.  Raises ValueError if the layer was used several
        times with that key, since the use cannot be told then, if the key is no longer known, and in compiled code,
        whose recomputation is another graph: the number of draws is part of it.
        """
        if torch.compiler.is_compiling():
            if torch_private.traced_in_backward():
                _refuse_compiled_recomputation(self.name)
            use, self.draws = self.draws, self.draws + 1
            return self.key, use
        if not torch_private.in_backward():
            self.past.note_use()
            use, self.draws = self.draws, self.draws + 1
            return self.key, use
        found = self.past.of_recomputation(self.name)
        if self.draws > 1 if found.order == self.order else found.order in self.used_again:
            raise ValueError(
                f"layer {self.name} is used several times with one key and recomputed by activation "
                "checkpointing, which cannot tell whose random numbers to repeat; call begin_step before each forward "
                "pass, or use rounding='nearest'"
            )
        if found.order == self.order:
            return self.key, 0
        return found.on[self.key.device], 0

    def _check_transforms(self) -> None:
        """Raise NotImplementedError under a torch.func transform: rounding with a shared scale is not elementwise."""
        if not torch.compiler.is_compiling() and torch_private.in_transform():
            raise NotImplementedError(
                f"layer {self.name}: torch.func transforms (vmap, grad, jvp, ...) over a rounded layer are not "
                "supported, because a scale belongs to a whole tensor; use torch.autograd, or transform within "
                "`unrounded(layers)`"
            )

    def _native(self, x: Tensor, weight: Tensor, bias: Tensor | None, key: Tensor, use: int) -> Tensor:
        if torch.is_grad_enabled() and x.shape[:-1].numel() % native_fp8.DIVISOR:
            # The name is read only here: a compiled graph that reads it is guarded by it, and serves one layer alone.
            native_fp8.refuse_rows(self.name, x.shape)
        sites = [self.site(name) for name in GEMM_SITES]
        y, counts = native_fp8.native_linear(x, weight, bias, key, sites, use=use, counting=self.counting)
        if torch.is_grad_enabled() and self.counting:
            for site, counted in counts:
                site.add_counts(counted)
        return y

    @property
    def plain(self) -> bool:
        """Whether the products are those of the plain layer, because no present site changes a value (FP32)."""
        return self.unchanging and not self.bypass

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether the GEMMs multiply bfloat16: `gemm_dtype` says so, or with "auto" it is faster and exact."""
        if self.gemm_dtype == "auto":
            return self.bfloat16_pays and all(site.exact_in_bfloat16 for site in self.sites.values())
        return self.gemm_dtype == "bfloat16"


@torch.compiler.disable
def _refuse_compiled_recomputation(name: str) -> None:
    raise ValueError(
        f"layer {name}: compiled code is recomputed by activation checkpointing and cannot tell whose random numbers "
        "to repeat; compile the function that calls checkpoint, or use rounding='nearest'"
    )


def _wanted(x: Tensor, weight: Tensor) -> tuple[Gemm, ...]:
    """The GEMMs of a product: that of the forward pass, and those of the gradients that autograd will ask for."""
    training = torch.is_grad_enabled()
    gemms: list[Gemm] = ["fprop"]
    if training and x.requires_grad:
        gemms.append("dgrad")
    if training and weight.requires_grad:
        gemms.append("wgrad")
    return tuple(gemms)
