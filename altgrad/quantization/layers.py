"""Linear layers whose three GEMMs see rounded operands, and the swap that puts them into any model.

    y = Q_a(x) Q_w(W)^T + b        dx = Q_g(dy) Q_w(W)        dW = Q_g(dy)^T Q_a(x)

Accumulation is in FP32; the bias and its gradient (the sum of the unrounded dy) are left alone.  Each site counts
what its rounding did on every step.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.formats import NumberFormat, Overflow, find_format
from altgrad.quantization import gemm, native
from altgrad.quantization.random import fill_key
from altgrad.quantization.site import Site, rounded_and_scale
from altgrad.quantization.straight_through import RoundGradient, RoundOperand
from altgrad.training.recipe import GEMM_SITES, GemmSite, Recipe


class QuantizedLinear(nn.Linear):
    """A linear layer that shares the Parameters of the one it replaces and rounds the operands of its GEMMs.

    `sites["weight" | "activation" | "gradient"]` hold the formats and, while `counting` is set, the counts since they
    were last taken (see `site.take_counts`).
    While `bypass` is set (see `unrounded`) nothing is rounded or counted.
    weight (out, in); input (..., in), output (..., out), computed in float32 whatever the input's dtype.
    """

    sites: nn.ModuleDict
    key: Tensor

    def __init__(self, linear: nn.Linear, recipe: Recipe, name: str, salt: int = 0) -> None:
        nn.Module.__init__(self)
        # Parameters, training flag, hooks: also those that compute a weight (torch.nn.utils.spectral_norm).
        self.__dict__.update(linear.__dict__)
        self._buffers, self._modules = dict(linear._buffers), dict(linear._modules)
        self.name = name
        self.master_weights = recipe.master_weights
        self.bypass = False
        self.counting = True
        self.native_fp8 = recipe.native_fp8
        self.gemm_dtype = recipe.gemm_dtype
        device = linear.weight.device
        self.bfloat16_pays = gemm.bfloat16_pays(device)
        self.sites = nn.ModuleDict(
            {
                site: Site(recipe.format_at(name, site), recipe, site, salt * len(GEMM_SITES) + position, device)
                for position, site in enumerate(GEMM_SITES)
            }
        )
        self.register_buffer("key", torch.zeros(2, dtype=torch.int32, device=device), persistent=False)

    def site(self, name: GemmSite) -> Site:
        site = self.sites[name]
        assert isinstance(site, Site)
        return site

    def share(self) -> None:
        """From now on input and output gradient are this rank's rows of larger ones; the weight is whole on each."""
        self.site("activation").share()
        self.site("gradient").share()

    def format_of(self, site: GemmSite) -> NumberFormat:
        return self.site(site).format

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):  # asked first: a graph that enters autocast is never cached
            return self._forward(x.float()).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float()).to(x.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        if self.bypass:
            return functional.linear(x, self.weight.float(), bias)
        if self.native_fp8 and x.numel():
            return self._native(x, bias)
        rounded_x = self._operand("activation", x)
        rounded_w = self._operand("weight", self.weight.float())
        linear = gemm.linear if self.multiplies_bfloat16 else functional.linear
        y = linear(rounded_x, rounded_w, None if bias is None else bias.detach())
        if torch.is_grad_enabled():
            site = self.site("gradient")
            slot = site.slot if self.counting else None
            y = RoundGradient.apply(y, bias, slot, site.spec, site.history, self.key, site.mode)
        return y

    def _native(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and x.shape[:-1].numel() % native.DIVISOR:
            native.refuse_rows(self.name, x.shape)  # a name read on the way here would make a graph of this layer alone
        sites = [self.site(name) for name in GEMM_SITES]
        y, *counts = native.native_linear(x, self.weight.float(), bias, self.key, sites, self.counting)
        if torch.is_grad_enabled() and self.counting:
            self.site("activation").add_counts(counts[0])
            self.site("weight").add_counts(counts[1])
        return y

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether its GEMMs multiply bfloat16: asked for, or faster here and exact with the formats of the moment."""
        if self.gemm_dtype == "auto":
            return self.bfloat16_pays and all(self.site(name).exact_in_bfloat16 for name in GEMM_SITES)
        return self.gemm_dtype == "bfloat16"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.bfloat16_pays = gemm.bfloat16_pays(self.weight.device)
        return self

    def _operand(self, name: GemmSite, operand: Tensor) -> Tensor:
        site = self.site(name)
        values, counts = RoundOperand.apply(operand, site.spec, site.history, self.key, site.mode)
        if torch.is_grad_enabled() and self.counting:
            site.add_counts(counts)
        return values

    def rounded_weight(self) -> Tensor:
        """Q_w of the layer's weight, (out, in); nothing is counted."""
        return self.rounded_weight_and_scale()[0]

    def rounded_weight_and_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q_w of the layer's weight, and the scale and inverse scale that it got; each (out, in)."""
        site = self.site("weight")
        with torch.no_grad():
            return rounded_and_scale(self.weight.detach().float(), site.spec, site.history, self.key, site.mode)

    def format_names(self) -> dict[str, tuple[str, Overflow]]:
        """Name and overflow rule of each site's format, for a checkpoint."""
        return {site: (self.format_of(site).name, self.format_of(site).overflow) for site in GEMM_SITES}

    def restore_formats(self, names: Mapping[str, tuple[str, Overflow]]) -> None:
        """Set the formats that `format_names` gave."""
        for site in GEMM_SITES:
            name, overflow = names[site]
            self.site(site).set_format(dataclasses.replace(find_format(name), overflow=overflow))

    def extra_repr(self) -> str:
        formats = ", ".join(f"{site}={self.format_of(site)}" for site in GEMM_SITES)
        return f"{super().extra_repr()}, {formats}"


def set_step(layers: Iterable[QuantizedLinear], seed: int, step: int) -> None:
    """Give stochastic rounding the random numbers of (seed, step).

    For a training loop of one's own, before every step: otherwise each step draws the same ones, which biases the sum
    of the steps.
    """
    for layer in layers:
        fill_key(layer.key, seed, step)


@contextmanager
def unrounded(layers: Iterable[QuantizedLinear]) -> Iterator[None]:
    """Within, the layers compute as plain linear layers and count nothing."""
    layers = list(layers)
    for layer in layers:
        layer.bypass = True
    try:
        yield
    finally:
        for layer in layers:
            layer.bypass = False


def quantize_model(model: nn.Module, recipe: Recipe, counting: bool = True) -> dict[str, QuantizedLinear]:
    """Swap every `nn.Linear` of a model in place for a `QuantizedLinear` with the same Parameters; return them by name.

    `counting`: what each rounding did is counted, for `site.take_counts` after every step; without it a step is a few
    percent faster.  Delayed scaling needs it, and `site.remember` with each amax that was taken.

    A layer that stands in several places stays one layer.  Subclasses of `nn.Linear` keep their own forward and are
    left alone (`nn.MultiheadAttention` never calls its output projection).

    Raises ValueError where there is nothing to swap, for delayed scaling without counting, where a `layer_formats` glob
    matches no layer, or where two layers of different formats share a weight, and with `native_fp8` for a shape or a
    device without FP8 GEMMs.
    """
    if recipe.scaling == "delayed" and not counting:
        raise ValueError("quantize_model: scaling='delayed' remembers the amaxes of past steps and needs counting=True")
    layers: dict[str, QuantizedLinear] = {}
    swapped: dict[nn.Module, QuantizedLinear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.Linear and name:
            if module not in swapped:
                swapped[module] = layers[name] = QuantizedLinear(module, recipe, name, salt=len(layers))
                layers[name].counting = counting
            parent_name, _, child_name = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child_name, swapped[module])
    if not layers:
        raise ValueError(f"quantize_model: {type(model).__name__} has no nn.Linear inside to quantise")
    _keep_fused_inference_off(model)
    _check_globs(recipe, layers)
    _check_shared_weights(layers)
    if recipe.native_fp8:
        for layer in layers.values():
            native.check_native(layer.name, layer.weight, [layer.site(site) for site in GEMM_SITES])
    return layers


def _keep_fused_inference_off(model: nn.Module) -> None:
    """In evaluation `nn.TransformerEncoderLayer` would hand the bare weights to a fused kernel: nothing is rounded."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _check_globs(recipe: Recipe, layers: dict[str, QuantizedLinear]) -> None:
    for pattern in recipe.layer_formats:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            raise ValueError(f"layer_formats: {pattern!r} matches no layer; layers: {', '.join(layers)}")


def _check_shared_weights(layers: dict[str, QuantizedLinear]) -> None:
    owner: dict[Tensor, QuantizedLinear] = {}
    for layer in layers.values():
        first = owner.setdefault(layer.weight, layer)
        if not layer.master_weights and first.format_of("weight") != layer.format_of("weight"):
            raise ValueError(
                f"layers {first.name} and {layer.name} share a weight but not its format "
                f"({first.format_of('weight')}, {layer.format_of('weight')}); without master weights it has one"
            )
