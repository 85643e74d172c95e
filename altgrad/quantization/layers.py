"""Linear layers whose three GEMMs see rounded operands.

    y = Q_a(x) Q_w(W)^T + b        dx = Q_g(dy) Q_w(W)        dW = Q_g(dy)^T Q_a(x)

Accumulation is in FP32.  The bias and its gradient (the sum of the unrounded dy) are not rounded.  Each site counts
the effects of its rounding on every step (see `kernel.counters`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad import torch_private
from altgrad.config.cast import GEMM_SITES, Cast, Gemm, GemmSite
from altgrad.config.operands import Operand, roundings
from altgrad.config.recipe import Recipe
from altgrad.formats import NumberFormat, Overflow, find_format
from altgrad.quantization import native_fp8 as native
from altgrad.quantization import products as gemm
from altgrad.quantization.kernel.scaled_rounding import rounded_and_scale
from altgrad.quantization.kernel.site import Site
from altgrad.quantization.operand_gemms import Plan, operand_gemms, reads_of

OPERAND_TENSORS: tuple[GemmSite, ...] = ("activation", "weight", "gradient")
_SALT_APART = 1 << 20  # between the random numbers of two roundings of one tensor


class QuantizedLinear(nn.Linear):
    """A linear layer that shares the Parameters of the one it replaces and rounds the operands of its GEMMs.

    `sites` holds the roundings by name: `weight`, `activation` and `gradient` if all GEMMs round the tensor alike, else
    one for each GEMM that differs, such as `wgrad.activation`.  A site has the format and, if `counting` is set, the
    counts since they were last taken (see `Site.take_counts`).  The state dict is that of the plain layer.
    `bypass` is the number of `unrounded` contexts around the layer; if it is not 0, nothing is rounded or counted.
    weight (out, in); input (..., in), output (..., out), computed in float32 and returned in the dtype
    that the plain layer returns: the input's, or autocast's where that is on.
    """

    sites: dict[str, Site]
    key: Tensor  # (3,) int32: words of the step's random numbers, then the rank
    draws: int  # stochastic forward passes since the key was set

    def __init__(
        self,
        linear: nn.Linear,
        recipe: Recipe,
        name: str,
        salt: int = 0,
        casts: Mapping[Operand, Cast] | None = None,
    ) -> None:
        """`casts`: those of the six operands; None: those of `recipe` for a layer of this name."""
        nn.Module.__init__(self)
        # Takes over Parameters, training flag and all hooks; some hooks compute the weight (spectral_norm).
        self.__dict__.update(linear.__dict__)
        self._buffers, self._modules = dict(linear._buffers), dict(linear._modules)
        self.name = name
        self.master_weights = recipe.master_weights
        self.bypass = 0
        self.counting = True
        self.native_fp8 = recipe.native_fp8
        self.gemm_dtype = recipe.gemm_dtype
        device = linear.weight.device
        self.bfloat16_pays = gemm.bfloat16_pays(device)
        casts = recipe.casts_at(name) if casts is None else casts
        self._by_tensor: dict[GemmSite, list[Site]] = {}
        self.sites = {}
        for place, (site, found) in enumerate(roundings(casts).items()):
            for again, rounded in enumerate(found):
                own_salt = salt * len(GEMM_SITES) + place + again * _SALT_APART
                self.sites[rounded.name] = Site(rounded, own_salt, device)
            self._by_tensor[site] = [self.sites[rounded.name] for rounded in found]
        self._reads = reads_of([self._by_tensor[tensor] for tensor in OPERAND_TENSORS])
        self.stochastic = any(cast.rounding == "stochastic" or cast.redraws for cast in casts.values())
        self.key = torch.zeros(3, dtype=torch.int32, device=device)
        self.draws = 0

    def roundings(self, tensor: GemmSite) -> list[Site]:
        """The roundings of a tensor, moved to the weight's device first (loading a state dict may have moved that)."""
        sites = self._by_tensor[tensor]
        if sites[0].spec.device != self.weight.device:
            self._follow()
        return sites

    def site(self, tensor: GemmSite) -> Site:
        """The first rounding of a tensor: the one for `fprop`, or for the output gradient the one for `dgrad`."""
        return self.roundings(tensor)[0]

    def set_key(self, key: Tensor) -> None:
        """Draw random numbers from this key from now on; layers may share a key."""
        self.key, self.draws = key, 0

    def share(self) -> None:
        """Treat input and output gradient from now on as this rank's rows of larger tensors."""
        for site in (*self.roundings("activation"), *self.roundings("gradient")):
            site.share()

    def format_of(self, site: GemmSite) -> NumberFormat:
        """The format of the first rounding of a tensor, see `site`."""
        return self.site(site).format

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), in the dtype of x or of an autocast block around it; within, all is float32."""
        device = x.device.type
        if not torch.is_autocast_enabled(device):  # checked first: torch caches no graph that enters autocast
            return self._forward(x.float()).to(x.dtype)
        returned = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return self._forward(x.float()).to(returned)

    def _forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        if self.bypass:
            return functional.linear(x, self.weight.float(), bias)
        self._check_transforms()
        use = self._next_use() if self.stochastic else 0
        if self.native_fp8 and x.numel():
            return self._native(x, bias, use)
        training = torch.is_grad_enabled()
        wanted: list[Gemm] = ["fprop"]
        if training and x.requires_grad:
            wanted.append("dgrad")
        if training and self.weight.requires_grad:
            wanted.append("wgrad")
        sites = [self.roundings(tensor) for tensor in OPERAND_TENSORS]
        plan = Plan.of(
            sites, self._reads, tuple(wanted), use=use, narrow=self.multiplies_bfloat16, counting=self.counting
        )
        y, counts = operand_gemms(x, self.weight.float(), bias, self.key, sites, plan)
        if training and self.counting:
            for site, counted in counts:
                site.add_counts(counted)
        return y

    def _counter(self) -> tuple[Tensor | None, Site | None]:
        """(slot, site) for the counts of the output gradient: a slot in a compiled graph, else slot and site.

        (None, None) if nothing is counted.  See `kernel.slots`.
        """
        if not (self.counting and torch.is_grad_enabled()):
            return None, None
        site = self.site("gradient")
        return (site.slots.next(), None) if torch.compiler.is_compiling() else (site.slots.first, site)

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

    def _native(self, x: Tensor, bias: Tensor | None, use: int) -> Tensor:
        if torch.is_grad_enabled() and x.shape[:-1].numel() % native.DIVISOR:
            native.refuse_rows(
                self.name, x.shape
            )  # reading self.name earlier would add a guard on it: one graph per layer
        sites = [self.site(name) for name in GEMM_SITES]
        y, *counts = native.native_linear(x, self.weight.float(), bias, *self._counter(), self.key, sites, use)
        if torch.is_grad_enabled() and self.counting:
            self.site("activation").add_counts(counts[0])
            self.site("weight").add_counts(counts[1])
        return y

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether the GEMMs multiply bfloat16: `gemm_dtype` says so, or with "auto" it is faster and exact."""
        if self.gemm_dtype == "auto":
            return self.bfloat16_pays and all(site.exact_in_bfloat16 for site in self.sites.values())
        return self.gemm_dtype == "bfloat16"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.key.device != self.weight.device:
            self._follow()
        return self

    def _follow(self) -> None:
        """Move the key and the sites to the weight's device."""
        device = self.weight.device
        self.bfloat16_pays = gemm.bfloat16_pays(device)
        self.key = torch.zeros_like(self.key, device=device) if self.key.is_meta else self.key.to(device)
        for site in self.sites.values():
            site.follow(device)

    def rounded_weight(self) -> Tensor:
        """The rounded weight Q_w(W), (out, in), without counting."""
        return self.rounded_weight_and_scale()[0]

    def rounded_weight_and_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rounded weight, scale, inverse scale), each (out, in), without counting."""
        site = self.site("weight")
        with torch.no_grad():
            return rounded_and_scale(self.weight.detach().float(), site.spec, site.history, self.key, site.mode)

    def format_names(self) -> dict[str, tuple[str, Overflow]]:
        """Name and overflow rule of each rounding's format, for a checkpoint."""
        return {name: (site.format.name, site.format.overflow) for name, site in self.sites.items()}

    def restore_formats(self, names: Mapping[str, tuple[str, Overflow]]) -> None:
        """Set the formats that `format_names` returned."""
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

    def extra_repr(self) -> str:
        """The layer's sizes and the format of each site, for `print`."""
        formats = ", ".join(f"{name}={site.format}" for name, site in self.sites.items())
        return f"{super().extra_repr()}, {formats}"


@contextmanager
def unrounded(layers: Iterable[QuantizedLinear]) -> Iterator[None]:
    """Context in which the layers compute as plain linear layers and count nothing; it may be nested."""
    layers = list(layers)
    for layer in layers:
        layer.bypass += 1
    try:
        yield
    finally:
        for layer in layers:
            layer.bypass -= 1
