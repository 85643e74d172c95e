"""Puts the adapters into a model: which of its modules are rounded, under which names, and which are left plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from altgrad.config.operands import high_precision_layers
from altgrad.config.recipe import Recipe
from altgrad.quantization.adapters.attention import SCORES, VALUES, ProductGemm, RoundedAttention, attention_gemms
from altgrad.quantization.adapters.registry import Adapter, adapter_for
from altgrad.quantization.adapters.rounded_module import RoundedModule, rounded_class
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

Filter = Callable[[nn.Module, str], bool]
ALONE = "layer"  # name of a layer that is the whole model


def rounded_layers(
    model: nn.Module, phases: Sequence[Recipe], filter_fn: Filter | None = None
) -> tuple[dict[str, RoundedGemm], dict[str, str]]:
    """(the rounded products by name, why other modules stay plain by name) of a model, which is changed in place.

    phases: the recipe in each phase of its schedule.  A product is named after its module, or after its weight where
    that is not `weight`: `h.0.attn.in_proj_weight`.
    """
    make_plain(model)
    recipe = phases[0]
    chosen, left_out = _chosen(model, recipe, filter_fn)
    names = {
        module: _names(name, _within(module, adapter, recipe.attention_gemms))
        for module, (name, adapter) in chosen.items()
    }
    every = [name for found in names.values() for name in found.values()]
    high = [high_precision_layers(one, every) for one in phases]
    layers: dict[str, RoundedGemm] = {}
    salt = 0
    for module, (_, adapter) in chosen.items():
        before = frozenset(vars(module))
        device = next(module.parameters()).device
        module.__class__ = rounded_class(adapter, type(module))
        assert isinstance(module, RoundedModule)
        made = module.made_gemms()
        if recipe.attention_gemms and isinstance(module, nn.MultiheadAttention):
            made |= attention_gemms(module)
        for within, layer in made.items():
            name = names[module][within]
            casts = [one.casts_at(name, name in kept) for one, kept in zip(phases, high, strict=True)]
            layer.set_up(recipe, name, salt, casts, device)
            salt += 1
            if not isinstance(layer, ProductGemm):
                layers[name] = layer
        module.note_added(before)
    return layers, left_out


def make_plain(model: nn.Module) -> None:
    """Take all rounding out of a model again; its weights stay as they are."""
    for module in model.modules():
        if isinstance(module, RoundedModule):
            module.become_plain()


def _chosen(
    model: nn.Module, recipe: Recipe, filter_fn: Filter | None
) -> tuple[dict[nn.Module, tuple[str, Adapter]], dict[str, str]]:
    """(module -> its first name and adapter, name -> why it stays plain)"""
    chosen: dict[nn.Module, tuple[str, Adapter]] = {}
    left_out: dict[str, str] = {}
    swallowed: set[nn.Module] = set()  # projections of attention modules that stay plain
    for name, module in model.named_modules():
        adapter = adapter_for(module)
        if adapter is None and recipe.attention_gemms and RoundedAttention.fits(module):
            adapter = RoundedAttention
        if adapter is None:
            continue
        if module in swallowed:
            found: Adapter | str = "nn.MultiheadAttention, which is left plain, multiplies by its weight itself"
        else:
            found = _adapter_or_reason(name, module, adapter, recipe, filter_fn)
        if not isinstance(found, str):
            chosen[module] = (name, found)
            continue
        left_out[name] = found
        if isinstance(module, nn.MultiheadAttention):
            swallowed.add(module.out_proj)
    return chosen, left_out


def _adapter_or_reason(
    name: str, module: nn.Module, adapter: Adapter | str, recipe: Recipe, filter_fn: Filter | None
) -> Adapter | str:
    """The adapter with which a module is rounded, or the reason why it stays plain."""
    if any(parameter.is_complex() for parameter in module.parameters()):
        return "its weights are complex numbers"
    if not isinstance(adapter, str) and any(_is_empty(module.get_parameter(at)) for at in _own_weights(module)):
        return "a weight of it has no values"
    if filter_fn is not None and not filter_fn(module, name):
        return "filter_fn"
    if not isinstance(adapter, str) and recipe.native_fp8 and not adapter.only_linear:
        return f"native_fp8 has no FP8 GEMM for {type(module).__name__}"
    return adapter


def _own_weights(module: nn.Module) -> list[str]:
    return [name for name, one in module.named_parameters(recurse=False) if not isinstance(one, UninitializedParameter)]


def _is_empty(weight: nn.Parameter) -> bool:
    """Whether a matrix has no rows or no columns; of a stack of matrices a process may have none."""
    return weight.ndim >= 2 and 0 in weight.shape[-2:]


def _within(module: nn.Module, adapter: Adapter, attention: bool) -> list[str]:
    """What a module's products are named after within it."""
    found = adapter.weights_of(module)
    return [*found, SCORES, VALUES] if attention and isinstance(module, nn.MultiheadAttention) else found


def _names(module: str, weights: list[str]) -> dict[str, str]:
    """Weight within the module -> name of the product."""
    return {weight: ".".join(part for part in (module, weight) if part) or ALONE for weight in weights}
