"""What `quantize_model` checks and switches of a model, and what it refuses."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm


def refuse_sites(model: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
    """Raise ValueError for a state dict of an old version, which contained formats, before anything is loaded."""
    old = next((key for key in state if ".sites." in f".{key}" and key.endswith((".spec", ".history"))), None)
    if old is not None:
        raise ValueError(
            f"state dict: {old!r} was saved by a version that kept formats in it; leave the keys with '.sites.' out to "
            "load the weights, and start the run anew"
        )


def keep_fused_inference_off(model: nn.Module) -> list[Callable[[], None]]:
    """Switch off the fused kernel of `nn.TransformerEncoderLayer` in evaluation, which would use unrounded weights.

    Returns what switches it on again.
    """
    switches: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            switches.append((module, "activation_relu_or_gelu", 0))
        elif isinstance(module, nn.TransformerEncoder):
            switches.append((module, "use_nested_tensor", False))
    undo: list[Callable[[], None]] = [
        functools.partial(setattr, module, name, getattr(module, name)) for module, name, _ in switches
    ]
    for module, name, off in switches:
        setattr(module, name, off)
    return undo


def check_options(recipe: Recipe, layers: Mapping[str, RoundedGemm], counting: bool, own_scales: bool) -> None:
    """Raise ValueError for options of `quantize_model` that this recipe excludes."""
    if own_scales and not recipe.master_weights:
        raise ValueError(
            "quantize_model: own_scales=True with master_weights=False: a stored weight has the whole's scale"
        )
    sites = [site for layer in layers.values() for phase in layer.phases for site in phase.by_name.values()]
    if not counting and any(site.delayed for site in sites):
        raise ValueError("quantize_model: scaling='delayed' remembers the amaxes of past steps and needs counting=True")


def check_globs(recipe: Recipe, layers: dict[str, RoundedGemm]) -> None:
    """Raise ValueError for a glob of `layer_formats` or `layer_gemms` that matches no layer."""
    for field in ("layer_formats", "layer_gemms"):
        for pattern in getattr(recipe, field):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
                raise ValueError(f"{field}: {pattern!r} matches no layer; layers: {', '.join(layers)}")


def check_shared_weights(layers: dict[str, RoundedGemm], phase: int) -> None:
    """Raise ValueError where two layers share a weight without a master, but not its format in this phase."""
    owner: dict[Tensor, RoundedGemm] = {}
    for layer in layers.values():
        first = owner.setdefault(layer.weight, layer)
        ours, others = (one.phases[phase].by_tensor["weight"][0].format for one in (layer, first))
        if not layer.master_weights and ours != others:
            raise ValueError(
                f"layers {first.name} and {layer.name} share a weight but not its format ({others}, {ours}); without "
                "master weights it has one"
            )
