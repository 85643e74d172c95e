"""A model with rounded layers, and what belongs to a step besides forward, backward and optimizer.

A training loop tells it when a step begins and when the optimizer has moved:

    quantized = quantize_model(model, recipe)
    for step in ...:
        quantized.begin_step(seed, step)   # which random numbers are drawn
        ... forward, backward, optimizer.step() ...
        quantized.after_optimizer()        # weights without masters back to their grid; amaxes into their history

The trainer is such a loop.  Forgetting one of the two is said once, in a warning, wherever the recipe needs it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.cast import GEMM_SITES
from altgrad.config.operands import high_precision_layers
from altgrad.config.recipe import Recipe
from altgrad.quantization import native_fp8 as native
from altgrad.quantization.kernel.counters import COUNTERS
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.site import Site
from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.reminder import Reminder
from altgrad.quantization.write_back import WriteBack

SiteKey = tuple[str, str]  # layer and rounding: weight, or wgrad.activation where GEMMs differ
_MICRO_BATCH, _VALIDATION = 0x3B, 0x7D  # tell derived keys apart
_AMAX, _USES = COUNTERS.index("amax"), COUNTERS.index("uses")


class QuantizedModel:
    """What `quantize_model` returns.  `layers`: the rounded layers by name; `write_back`: None with master weights."""

    def __init__(self, model: nn.Module, recipe: Recipe, layers: dict[str, QuantizedLinear]) -> None:
        self.model, self.recipe, self.layers = model, recipe, layers
        self.write_back = None if recipe.master_weights else WriteBack(layers, recipe)
        self._sites: dict[SiteKey, Site] = {
            (name, site): part for name, layer in layers.items() for site, part in layer.sites.items()
        }
        self._shared = False
        self._keys: dict[torch.device, Tensor] = {}
        stochastic = any(layer.stochastic for layer in layers.values())
        stochastic |= not recipe.master_weights and recipe.update_rounding == "stochastic"
        written = not recipe.master_weights or any(site.delayed for site in self._sites.values())
        self._reminder = Reminder(layers.values(), begin_step=stochastic, after_optimizer=written)
        if self.write_back is not None:
            self.write_back()
            self.write_back.forget()

    def share(self) -> None:
        """From now on batches are this rank's rows of larger ones: one scale and one draw for all ranks' rows."""
        self._shared = True
        for layer in self.layers.values():
            layer.share()

    def begin_step(self, seed: int | None, step: int, micro_batch: int = 0, rank: int = 0) -> None:
        """Draw from now on the random numbers of (seed, step, micro_batch); forget what was counted before the step.

        Call it before the forward pass of every step, and of every micro-batch, counted from 0.  seed None: the
        recipe's.  rank: this process's among those that share a batch (see `share`); raises ValueError without.
        """
        if rank and not self._shared:
            raise ValueError(f"begin_step: rank={rank}, but the ranks share no batch; call share() once before")
        seed = self.recipe.seed if seed is None else seed
        self._set_key((seed, step) if micro_batch == 0 else derived_words(seed, step, _MICRO_BATCH, micro_batch), rank)
        self._reminder.step_begun()
        if micro_batch:
            for site in self._sites.values():
                site.set_aside()
            return
        self._forget_counts()
        if self.write_back is not None:
            self.write_back.begin_step(seed, step)

    def begin_validation(self, seed: int | None, step: int, batch: int) -> None:
        """Draw from now on the random numbers of a held-out batch, which every rank evaluates whole."""
        seed = self.recipe.seed if seed is None else seed
        self._set_key(derived_words(seed, step, _VALIDATION, batch), 0)

    def after_optimizer(self, counts: Mapping[SiteKey, Tensor] | None = None) -> None:
        """Round weights without masters back to their grid, and put the step's amaxes into their histories.

        Call it after every `optimizer.step()`.  counts: those of all ranks together, where they were added up.
        """
        if self.write_back is not None:
            self.write_back()
        self._remember(self.counts() if counts is None else counts)
        self._forget_counts()
        self._reminder.written()

    def counts(self) -> dict[SiteKey, Tensor]:
        """What each site has counted since the step began, (len(COUNTERS),); a site that was not used is absent."""
        found = ((key, site.counted()) for key, site in self._sites.items())
        return {key: counts for key, counts in found if counts is not None}

    def histories(self) -> dict[str, Tensor]:
        """The amaxes that delayed scaling remembers, newest first, by `layer.site`; changing them changes scales."""
        return {f"{name}.{site}": part.history for (name, site), part in self._sites.items() if part.delayed}

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on and the model's own state dict, which is the plain model's, does not hold."""
        return {
            "formats": {name: layer.format_names() for name, layer in self.layers.items()},
            "histories": {
                f"{name}.{site}": part.history.clone() for (name, site), part in self._sites.items() if part.delayed
            },
            "corrections": {} if self.write_back is None else dict(self.write_back.corrections),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.  Raises ValueError where it is another model's or another recipe's."""
        histories = self.histories()
        corrections = {} if self.write_back is None else self.write_back.corrections
        for what, ours in (("formats", self.layers), ("histories", histories), ("corrections", corrections)):
            _check_names(what, ours, state)
        for name, history in histories.items():
            if state["histories"][name].shape != history.shape:
                raise ValueError(
                    f"quantised state: the history of {name} has {len(state['histories'][name])} amaxes; "
                    f"amax_history={len(history)} here"
                )
        for name, formats in state["formats"].items():
            self.layers[name].restore_formats(formats)
        for name, history in histories.items():
            history.copy_(state["histories"][name])
        for name, correction in corrections.items():
            correction.copy_(state["corrections"][name])
        self._reminder.written()

    def _set_key(self, words: tuple[int, int], rank: int) -> None:
        filled = set()
        for layer in self.layers.values():
            device = layer.weight.device
            key = self._keys.get(device)
            if key is None:
                key = self._keys[device] = torch.zeros(3, dtype=torch.int32, device=device)
            if layer.stochastic and device not in filled:
                fill_key(key, *words, rank)
                filled.add(device)
            layer.set_key(key)

    def _forget_counts(self) -> None:
        for site in self._sites.values():
            site.take_counts()

    def _remember(self, counts: Mapping[SiteKey, Tensor]) -> None:
        """Put amaxes at the front of the histories of delayed scaling; a site without a use keeps its own."""
        delayed = [key for key in counts if self._sites[key].delayed]
        for device in {counts[key].device for key in delayed}:
            keys = [key for key in delayed if counts[key].device == device]
            found = torch.stack([counts[key] for key in keys])
            kept = torch.stack([self._sites[key].history for key in keys])
            moved = torch.cat([found[:, _AMAX : _AMAX + 1], kept[:, :-1]], dim=1)
            new = torch.where(found[:, _USES : _USES + 1] > 0, moved, kept)
            torch._foreach_copy_([self._sites[key].history for key in keys], list(new.unbind()))


def _check_names(what: str, ours: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    given = state.get(what)
    if given is None or set(given) != set(ours):
        there = "nothing" if given is None else ", ".join(sorted(set(given) ^ set(ours))) + " on one side only"
        raise ValueError(f"quantised state: {what}: {there}; it must be of the same model and recipe")


def quantize_model(model: nn.Module, recipe: Recipe, counting: bool = True) -> QuantizedModel:
    """Swap every `nn.Linear` of a model in place for a `QuantizedLinear` with the same Parameters.

    `counting`: what each rounding did is counted, for `QuantizedModel.counts`; without it a step is a few percent
    faster.  Delayed scaling needs it.  Without master weights the weights are rounded to their grid here.  The model's
    state dict keeps the plain model's keys.

    A layer that stands in several places stays one layer.  Subclasses of `nn.Linear` keep their own forward and are
    left alone (`nn.MultiheadAttention` never calls its output projection).

    Raises ValueError where there is nothing to swap, for delayed scaling without counting, where a `layer_formats` glob
    matches no layer, where two layers of different formats share a weight or a weight at rest has a dtype that cannot
    hold its grid, and with `native_fp8` for a shape or a device without FP8 GEMMs.
    """
    layers: dict[str, QuantizedLinear] = {}
    swapped: dict[nn.Module, QuantizedLinear] = {}
    modules = list(model.named_modules(remove_duplicate=False))
    high = high_precision_layers(recipe, [name for name, module in modules if type(module) is nn.Linear])
    for name, module in modules:
        if type(module) is nn.Linear and name:
            if module not in swapped:
                casts = recipe.casts_at(name, name in high)
                swapped[module] = layers[name] = QuantizedLinear(module, recipe, name, len(layers), casts)
                layers[name].counting = counting
            parent_name, _, child_name = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child_name, swapped[module])
    if not layers:
        raise ValueError(f"quantize_model: {type(model).__name__} has no nn.Linear inside to quantise")
    if not counting and any(site.delayed for layer in layers.values() for site in layer.sites.values()):
        raise ValueError("quantize_model: scaling='delayed' remembers the amaxes of past steps and needs counting=True")
    _keep_fused_inference_off(model)
    _check_globs(recipe, layers)
    _check_shared_weights(layers)
    if recipe.native_fp8:
        for layer in layers.values():
            native.check_native(layer.name, layer.weight, [layer.site(site) for site in GEMM_SITES])
    model.register_load_state_dict_pre_hook(_refuse_sites)
    return QuantizedModel(model, recipe, layers)


def _refuse_sites(model: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
    """Before anything is loaded: refuse a state dict of the time when formats were part of it."""
    old = next((key for key in state if ".sites." in f".{key}" and key.endswith((".spec", ".history"))), None)
    if old is not None:
        raise ValueError(
            f"state dict: {old!r} was saved by a version that kept formats in it; leave the keys with '.sites.' out to "
            "load the weights, and start the run anew"
        )


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
