"""One product of a layer with rounded operands: its roundings, its random numbers, and its three GEMMs.

    y = Q_a(x) Q_w(W)^T + b        dx = Q_g(dy) Q_w(W)        dW = Q_g(dy)^T Q_a(x)

Accumulation is in FP32.  The bias and its gradient (the sum of the unrounded dy) are not rounded.  Each site counts
the effects of its rounding on every step (see `kernel.counting`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from altgrad import torch_private
from altgrad.config.cast import GEMM_SITES, GEMMS, Cast, Gemm, GemmSite
from altgrad.config.operands import Operand
from altgrad.config.recipe import Recipe
from altgrad.formats import NumberFormat, Overflow, find_format
from altgrad.quantization.gemms import native_fp8, products
from altgrad.quantization.gemms.operand_gemms import GemmStructure, operand_gemms
from altgrad.quantization.gemms.sharded import Cut, cut_at_rest, is_sharded, local_product, own_part
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.kernel.round import Rounding
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site, rounded_and_scale
from altgrad.quantization.kernel.site import OPERAND_TENSORS, Site, SiteSet, together

Watch = Callable[["RoundedGemm", tuple[Gemm, ...]], AbstractContextManager[None]]


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a product with x has within autocast, which leaves float64 alone."""
    return x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(x.device.type)


class RoundedGemm:
    """The roundings of the six operands of a layer's three GEMMs, and these GEMMs.

    `sites` holds the roundings by name: `weight`, `activation` and `gradient` if all GEMMs round the tensor alike, else
    one for each GEMM that differs, such as `wgrad.activation`.  A site has the format and, if `counting` is set, the
    counts since they were last taken (see `Site.take_counts`).
    `phases`: the sites in each phase of the recipe's schedule; `sites` are those of `phase`, the present one.
    `bypass` is the number of `unrounded` contexts around the layer; if it is not 0, nothing is rounded or counted.  Nor
    is anything in a layer whose formats are all FP32, which costs no kernel and has no counts.
    `weight`: the Parameter, or the tensor that the module computes from Parameters (weight norm).
    """

    weight: Tensor
    name: str
    sites: dict[str, Site]
    phases: list[SiteSet]
    phase: int
    stochastic: bool  # whether the present sites draw random numbers
    key: Tensor  # (3,) int32: words of the step's random numbers, then the rank
    draws: int  # stochastic forward passes since the key was set
    own_scales: bool  # of a weight that is divided among processes, each chooses the scale of its part
    cuts_columns: Mapping[int, bool | None] = {0: False}  # see `sharded.cut_at_rest`
    watch: Watch | None  # told of the products that are left unrounded by `bypass`, and of the GEMMs they belong to

    def set_up(
        self, recipe: Recipe, name: str, salt: int, casts: Sequence[Mapping[Operand, Cast]], device: torch.device
    ) -> None:
        """`casts`: those of the six operands in each phase; salt: tells the random numbers of layers apart."""
        self.name = name
        self.master_weights = recipe.master_weights
        self.bypass = 0
        self.watch = None
        self.counting = True
        self.own_scales = False
        self.native_fp8 = recipe.native_fp8
        self.gemm_dtype = recipe.gemm_dtype
        self.bfloat16_pays = products.bfloat16_pays(device)
        self.phases = [SiteSet.of(of_phase, salt, device) for of_phase in casts]
        self.enter(0)
        self.key = torch.zeros(3, dtype=torch.int32, device=device)
        self.draws = 0

    @property
    def module(self) -> nn.Module:
        """The module whose forward pass computes the products."""
        assert isinstance(self, nn.Module)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return self.weight.device

    def trained(self) -> list[nn.Parameter]:
        """The Parameters on which the weight depends."""
        weight = self.weight
        return [weight] if isinstance(weight, nn.Parameter) else list(self.module.parameters())

    @property
    def weight_gradient(self) -> Tensor | None:
        """Gradient of the weight; None if there is none yet, or if the weight is computed from Parameters."""
        weight = self.weight
        return weight.grad if weight.is_leaf else None

    def sizes(self) -> tuple[int, int]:
        """(outputs, inputs) of a GEMM with the weight."""
        weight = self.weight
        return weight.shape[0], weight[0].numel()

    def one_matrix(self, weight: Tensor) -> Tensor:
        """The weight, or a tensor of its shape, as a matrix: a row for each output, or the transpose of that."""
        return weight.flatten(1)

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """The weight, or a tensor of its shape, as the GEMMs read it: one tensor for each rounding."""
        return [weight]

    def from_matrices(self, matrices: Sequence[Tensor]) -> Tensor:
        """Undo `matrices`."""
        return matrices[0]

    def enter(self, phase: int) -> None:
        """Round as in that phase from now on."""
        self.phase = phase
        self.sites, self._by_tensor, self._reads, self.stochastic = self.phases[phase]
        self._note_formats()

    def roundings(self, tensor: GemmSite) -> list[Site]:
        """The roundings of a tensor, moved to the weight's device first (loading a state dict may have moved that)."""
        sites = self._by_tensor[tensor]
        if sites[0].spec.device != self.device:
            self.follow()
        return sites

    def site(self, tensor: GemmSite) -> Site:
        """The first rounding of a tensor: the one for `fprop`, or for the output gradient the one for `dgrad`."""
        return self.roundings(tensor)[0]

    def set_key(self, key: Tensor) -> None:
        """Draw random numbers from this key from now on; layers may share a key."""
        self.key, self.draws = key, 0

    def share(self, scales: bool = True) -> None:
        """Treat input and output gradient from now on as this rank's rows of larger tensors, see `Site.share`."""
        for phase in self.phases:
            for site in (*phase.by_tensor["activation"], *phase.by_tensor["gradient"]):
                site.share(scales)

    def formats_in(self, gemm_name: Gemm) -> tuple[NumberFormat, ...]:
        """The formats of the two operands of a GEMM, in the order of `GEMMS`."""
        of_operand = {operand: site.format for site in self.sites.values() for operand in site.rounded.operands}
        return tuple(of_operand[Operand(gemm_name, tensor)] for tensor in GEMMS[gemm_name])

    def format_of(self, site: GemmSite) -> NumberFormat:
        """The format of the first rounding of a tensor, see `site`."""
        return self.site(site).format

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, batched: bool = False) -> Tensor:
        """x W^T + b with rounded operands, in the dtype that the plain product would have.

        x (..., in), weight (out, in), bias (out,); batched: x (b, rows, in), weight (b, out, in), without bias.
        """
        kind = x.device.type
        bias = None if bias is None else bias.float()
        if not torch.is_autocast_enabled(kind):  # checked first: torch caches no graph that enters autocast
            return self.compute(x.float(), weight.float(), bias, batched).to(x.dtype)
        with torch.autocast(kind, enabled=False):
            y = self.compute(x.float(), weight.float(), bias, batched)
        return y.to(autocast_dtype(x))

    def compute(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batched: bool = False,
        convolution: products.Convolution | None = None,
    ) -> Tensor:
        """As `multiply`, all float32.  convolution: x (batch, in, ...), weight (out, in / groups, ...)."""
        if self.bypass:
            if self.watch is None:
                return products.plain(x, weight, bias, batched, convolution)
            with self.watch(self, _wanted(x, weight)):
                return products.plain(x, weight, bias, batched, convolution)
        if self.plain:
            return products.plain(x, weight, bias, batched, convolution)
        if is_sharded(weight):
            if batched or convolution is not None or self.native_fp8:
                raise ValueError(f"layer {self.name}: of sharded weights only those of linear layers are multiplied")
            part = local_product(self.name, x, weight, bias, self.own_scales)  # type: ignore[arg-type]
            y = self._rounded(part.x, part.weight, part.bias, cuts=part.cuts)
            return part.joined(y, weight, bias)  # type: ignore[arg-type]
        return self._rounded(x, weight, bias, batched, convolution)

    def _rounded(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batched: bool = False,
        convolution: products.Convolution | None = None,
        cuts: Mapping[GemmSite, Cut] | None = None,
    ) -> Tensor:
        """The product with rounded operands, all float32; cuts: how tensors are divided among processes."""
        self._check_transforms()
        use = self._next_use() if self.stochastic else 0
        if self.native_fp8 and not batched and x.numel():
            return self._native(x, weight, bias, use)
        training = torch.is_grad_enabled()
        wanted = _wanted(x, weight)
        sites = [self.roundings(tensor) for tensor in OPERAND_TENSORS]
        narrow = self.multiplies_bfloat16 and not batched and convolution is None
        structure = GemmStructure.of(sites, self._reads, wanted, use=use, narrow=narrow, counting=self.counting)
        if batched or convolution is not None:
            structure = structure._replace(batched=batched, convolution=convolution)
        key = self.key
        for tensor, cut in (cuts or {}).items():
            modes = tuple(cut.applied(mode, self.name) for mode in getattr(structure, tensor))
            structure, key = structure._replace(**{tensor: modes}), cut.placed(self.key)  # type: ignore[arg-type]
        y, counts = operand_gemms(x, weight, bias, key, sites, structure)
        if training and self.counting:
            for site, counted in counts:
                site.add_counts(counted)
        return y

    def _next_use(self) -> int:
        """The number of earlier draws with this key, so that each use of the layer draws independent numbers.

        A recomputation during the backward pass (activation checkpointing) repeats the draw of the forward pass: it
        returns 0.  Raises ValueError if the layer was used several times, since the use cannot be told then.
        """
        if torch.compiler.is_compiling() or not torch_private.in_backward():
            use, self.draws = self.draws, self.draws + 1
            return use
        if self.draws > 1:
            raise ValueError(
                f"layer {self.name} is used {self.draws} times with one key and recomputed by activation "
                "checkpointing, which cannot tell whose random numbers to repeat; call begin_step before each forward "
                "pass, or use rounding='nearest'"
            )
        return 0

    def _check_transforms(self) -> None:
        """Raise NotImplementedError under a torch.func transform: rounding with a shared scale is not elementwise."""
        if not torch.compiler.is_compiling() and torch_private.in_transform():
            raise NotImplementedError(
                f"layer {self.name}: torch.func transforms (vmap, grad, jvp, ...) over a rounded layer are not "
                "supported, because a scale belongs to a whole tensor; use torch.autograd, or transform within "
                "`unrounded(layers)`"
            )

    def _native(self, x: Tensor, weight: Tensor, bias: Tensor | None, use: int) -> Tensor:
        if torch.is_grad_enabled() and x.shape[:-1].numel() % native_fp8.DIVISOR:
            native_fp8.refuse_rows(
                self.name, x.shape
            )  # reading self.name earlier would add a guard on it: one graph per layer
        sites = [self.site(name) for name in GEMM_SITES]
        y, counts = native_fp8.native_linear(x, weight, bias, self.key, sites, use=use, counting=self.counting)
        if torch.is_grad_enabled() and self.counting:
            for site, counted in counts:
                site.add_counts(counted)
        return y

    @property
    def plain(self) -> bool:
        """Whether the products are those of the plain layer, because no present site changes a value (FP32)."""
        return self._unchanging and not self.bypass

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether the GEMMs multiply bfloat16: `gemm_dtype` says so, or with "auto" it is faster and exact."""
        if self.gemm_dtype == "auto":
            return self.bfloat16_pays and all(site.exact_in_bfloat16 for site in self.sites.values())
        return self.gemm_dtype == "bfloat16"

    def follow(self) -> None:
        """Move the key and the sites to the weight's device."""
        device = self.device
        self.bfloat16_pays = products.bfloat16_pays(device)
        self.key = torch.zeros_like(self.key, device=device) if self.key.is_meta else self.key.to(device)
        for phase in self.phases:
            for site in phase.by_name.values():
                site.follow(device)

    def rounded_weight(self) -> Tensor:
        """The rounded weight Q_w(W), in the shape of the weight, without counting."""
        return self.rounded_weight_and_scale()[0]

    def rounded_weight_and_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rounded weight, scale, inverse scale), each in the shape of the weight, without counting.

        Of a weight that is divided among processes, this process's part.
        """
        site = self.site("weight")
        mode, key = self._at_rest(site.mode, self.key)
        with torch.no_grad():
            found = [
                rounded_and_scale(matrix, site.spec, site.history, key, mode)
                for matrix in self.matrices(own_part(self.weight).detach().float())
            ]
            rounded, scale, inverse = (self.from_matrices(parts) for parts in zip(*found, strict=True))
        return rounded, scale, inverse

    def rounded_at_rest(self, wanted: Tensor, key: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
        """(stored weight, counts) for a weight that shall become `wanted`, float32, in the shape of the weight.

        Of a weight that is divided among processes, this process's part.
        """
        site = self.site("weight")
        mode, key = self._at_rest(site.mode._replace(rounding=rounding, at_rest=True), key)
        found = [round_site(matrix, site.spec, site.history, key, mode) for matrix in self.matrices(wanted)]
        if not found:  # this process has none of the experts
            return wanted, wanted.new_zeros(len(COUNTERS))
        return self.from_matrices([rounded for rounded, _ in found]), functools.reduce(together, [c for _, c in found])

    def _at_rest(self, mode: Mode, key: Tensor) -> tuple[Mode, Tensor]:
        """Mode and key for the stored weight, which may be divided among processes."""
        cut = cut_at_rest(self.name, self.weight, self.cuts_columns)
        if cut is None:
            return mode, key
        return cut._replace(own_scales=self.own_scales).applied(mode, self.name), cut.placed(key)

    def format_names(self) -> dict[str, tuple[str, Overflow]]:
        """Name and overflow rule of each present rounding's format, for a checkpoint."""
        return {name: (site.format.name, site.format.overflow) for name, site in self.sites.items()}

    def restore_formats(self, names: Mapping[str, tuple[str, Overflow]]) -> None:
        """Set the formats that `format_names` returned in the same phase."""
        for site_name, (name, overflow) in names.items():
            self.set_format(site_name, dataclasses.replace(find_format(name), overflow=overflow))

    def set_format(self, site_name: str, fmt: NumberFormat) -> None:
        """Round to another format from now on.  Raises ValueError if `gemm_dtype` or native FP8 excludes it."""
        site = self.sites[site_name]
        obstacle = site.rounded.cast.bfloat16_obstacle(fmt)
        if self.gemm_dtype == "bfloat16" and obstacle is not None:
            raise ValueError(f"gemm_dtype='bfloat16': {obstacle}; a run that changes to {fmt} needs gemm_dtype='auto'")
        if self.native_fp8 and fmt != site.format:
            raise ValueError(f"native_fp8=True: a site cannot change from {site.format} to {fmt}; use native_fp8=False")
        site.set_format(fmt)
        self._note_formats()

    def _note_formats(self) -> None:
        """Note whether all present formats are FP32: a compiled graph depends on this, and on nothing else of them."""
        self._unchanging = all(site.changes_nothing for site in self.sites.values())


def _wanted(x: Tensor, weight: Tensor) -> tuple[Gemm, ...]:
    """The GEMMs of a product: that of the forward pass, and those of the gradients that autograd will ask for."""
    training = torch.is_grad_enabled()
    gemms: list[Gemm] = ["fprop"]
    if training and x.requires_grad:
        gemms.append("dgrad")
    if training and weight.requires_grad:
        gemms.append("wgrad")
    return tuple(gemms)
