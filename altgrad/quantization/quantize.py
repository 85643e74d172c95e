"""Makes a model round the operands of its GEMMs: the first line of a training loop of one's own.

quantized = altgrad.quantize_(model, "mxfp8")      # by a published name, or `quantize_model(model, recipe)`
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from altgrad.config.cast import GEMM_SITES
from altgrad.config.phases import first_steps
from altgrad.config.recipe import Recipe, as_recipe
from altgrad.quantization.adapters.fit import Filter, rounded_layers
from altgrad.quantization.gemms import native_fp8 as native
from altgrad.quantization.layers import gemms_of
from altgrad.quantization.model_checks import (
    check_globs,
    check_options,
    check_shared_weights,
    keep_fused_inference_off,
    refuse_sites,
)
from altgrad.quantization.quantized_model import QuantizedModel


@torch.inference_mode(False)  # its tensors are those of training, wherever it is called
def quantize_model(
    model: nn.Module,
    recipe: Recipe,
    counting: bool = True,
    filter_fn: Filter | None = None,
    total_steps: int | None = None,
    own_scales: bool = False,
) -> QuantizedModel:
    """Round the operands of the GEMMs of a model's layers from now on; the model stays the same, with its Parameters.

    `counting`: count the effects of each rounding, for `QuantizedModel.counts`; without it a step is a few percent
    faster, but delayed scaling needs it.  Without master weights the weights are rounded to their grid here.  The state
    dict of the model keeps the keys of the plain model.  `filter_fn(module, name)`: false for a module that is to stay
    plain.

    Which kinds of layers are rounded, `adapters.registry` tells.  A layer that occurs in several places stays one
    layer.  The model may be a single layer.  A model that is rounded already gets the new recipe instead; a
    `QuantizedModel` of before is of no more use.

    `total_steps`: the length of the run, for a schedule whose phases start at a share of it.  `own_scales`: where
    tensor parallelism divides a tensor among processes, each chooses the scale of its part, instead of the whole's.

    Raises ValueError if the model has no layer of these kinds; for delayed scaling without counting; if a glob of
    `layer_formats` or `layer_gemms` matches no layer; if two layers with different formats share a weight; if a weight
    without a master has a dtype that cannot hold its grid, or is computed; with `native_fp8` for a shape or a device
    without FP8 GEMMs; and for a phase that starts at a share of an unknown number of steps, or never.
    """
    first_of_phase = first_steps(recipe.phases, total_steps)
    phases = [recipe, *(recipe.in_phase(number) for number in range(1, len(first_of_phase) + 1))]
    layers, left_out = rounded_layers(model, phases, filter_fn)
    if not layers:
        why = "".join(f"; {name or 'itself'}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"quantize_model: {type(model).__name__} has no layer to round, such as nn.Linear{why}")
    for layer in gemms_of(model):
        layer.counting, layer.own_scales = counting, own_scales
    check_options(recipe, layers, counting, own_scales)
    undo = keep_fused_inference_off(model)
    for number, one in enumerate(phases):
        check_globs(one, layers)
        check_shared_weights(layers, number)
    if recipe.native_fp8:
        for layer in layers.values():
            native.check_native(layer.name, layer.weight, [layer.site(site) for site in GEMM_SITES])
    hook = model.register_load_state_dict_pre_hook(refuse_sites)
    again = partial(
        quantize_model, counting=counting, filter_fn=filter_fn, total_steps=total_steps, own_scales=own_scales
    )
    return QuantizedModel(model, recipe, layers, left_out, [hook.remove, *undo], first_of_phase, again)


def quantize_(
    model: nn.Module,
    recipe: Recipe | str,
    *,
    counting: bool = True,
    filter_fn: Filter | None = None,
    total_steps: int | None = None,
    own_scales: bool = False,
) -> QuantizedModel:
    """Round the operands of the model's GEMMs from now on, in place; see `quantize_model`, also for the options.

    recipe: a `Recipe`, the name of a published one (see `altgrad recipes`), or that of a format for all operands.
    Raises ValueError for an unknown name, TypeError for no model or no recipe, and what `quantize_model` raises.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize_: expected a torch.nn.Module to round, found {type(model).__name__}")
    return quantize_model(model, as_recipe(recipe, "quantize_"), counting, filter_fn, total_steps, own_scales)
