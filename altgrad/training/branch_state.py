"""What a branch takes over of a checkpoint whose run had another config.

Where nothing changes that the state depends on, all of it is taken, so that an unchanged branch repeats its parent bit
for bit.  Weights, optimizer moments and counters are always taken.  Of what belongs to one numeric setting, the part
that still exists under the new fields is taken: amax histories by rounding (a shorter one keeps its newest values, a
longer one is filled up with zeros, which have no effect), formats where the config still asks for the one it asked for
before (so that an emergency shift stays), corrections and compensations by layer.  With a schedule, the phase
of the checkpoint's step goes on from the one of the parent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from altgrad.config.operands import high_precision_layers, roundings
from altgrad.config.phases import phase_at
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.stability.interventions import intervention_names

_APART = {"rounding_seed", "recipe"}  # numeric fields on which no part of a state depends


def changed_numerics(before: TrainConfig, after: TrainConfig) -> set[str]:
    """The numeric fields that differ and on which a checkpoint's state depends."""
    names = TrainConfig.of_kind("numeric") - _APART
    return {name for name in names if getattr(before, name) != getattr(after, name)}


def rests_elsewhere(before: TrainConfig, after: TrainConfig, layers: Collection[str], step: int) -> bool:
    """Whether the stored weights of `after` lie on other grids than those of `before`, after that step."""
    if after.master_weights:
        return False
    grids = [_weights(config.in_phase(phase_at(config.phase_starts, step)), layers) for config in (before, after)]
    return before.master_weights or grids[0] != grids[1]


def adapted(
    state: Mapping[str, Any],
    fresh: Mapping[str, Any],
    before: TrainConfig,
    after: TrainConfig,
    forget: Collection[str] = (),
) -> dict[str, Any]:
    """The state of a trainer with the config `after`, from the state of one with `before`.

    fresh: the state of the new trainer before its first step.  The seconds of the parent are not the branch's own.
    """
    names = {one: intervention_names(config) for one, config in (("state", before), ("fresh", after))}
    kept = dict(zip(names["state"], state["interventions"], strict=True))
    own = dict(zip(names["fresh"], fresh["interventions"], strict=True))
    changed = bool(changed_numerics(before, after)) or bool(forget)
    if changed:
        kept.pop("guard")  # its snapshot is taken anew, and so is that of the ladder
        if "ladder" in kept and "ladder" in own:
            kept["ladder"] = {**kept["ladder"], "healthy": own["ladder"]["healthy"]}
    return {
        "step": state["step"],
        "tokens": state["tokens"],
        "ahead": state.get("ahead", 0),
        "elapsed_seconds": 0.0,
        "model": state["model"],
        "optimizer": {
            "state": state["optimizer"]["state"],
            "param_groups": _param_groups(state["optimizer"]["param_groups"], fresh["optimizer"]["param_groups"]),
        },
        "quantized": _quantized(state["quantized"], fresh["quantized"], before, after, forget, state["step"])
        if changed
        else state["quantized"],
        "diagnostics": {**fresh["diagnostics"], "last_histogram": state["diagnostics"]["last_histogram"]}
        if changed
        else state["diagnostics"],
        "interventions": [kept.get(name, own[name]) for name in names["fresh"]],
    }


def _param_groups(kept: list[dict[str, Any]], fresh: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer settings of the new config; which parameters they are for is the same."""
    return [{**old, **new, "params": old["params"]} for old, new in zip(kept, fresh, strict=True)]


def _quantized(
    state: Mapping[str, Any],
    fresh: Mapping[str, Any],
    before: TrainConfig,
    after: TrainConfig,
    forget: Collection[str],
    step: int,
) -> dict[str, Any]:
    old, new = (phase_at(config.phase_starts, step) for config in (before, after))
    phases = [fresh, *fresh.get("phases", [])]
    recipes = before.in_phase(old), after.in_phase(new)
    adapted_phase = _phase([state, *state.get("phases", [])][old], phases[new], *recipes, forget)
    taken: dict[str, Any] = {name: (adapted_phase if new == 0 else fresh)[name] for name in ("formats", "histories")}
    if len(phases) > 1:
        later = [adapted_phase if number == new else kept for number, kept in enumerate(phases)][1:]
        taken |= {"phase": new, "phases": later}
    for part in ("corrections", "compensations"):
        if part in fresh:
            taken[part] = {name: state.get(part, {}).get(name, own) for name, own in fresh[part].items()}
    return taken


def _phase(
    state: Mapping[str, Any], fresh: Mapping[str, Any], before: Recipe, after: Recipe, forget: Collection[str]
) -> dict[str, Any]:
    """Formats and histories of the phase that goes on."""
    histories = {} if "histories" in forget else state["histories"]
    asked = _formats(before, fresh["formats"]), _formats(after, fresh["formats"])
    formats = {}
    for layer, sites in fresh["formats"].items():
        theirs = state["formats"].get(layer, {})
        formats[layer] = {
            site: theirs[site] if site in theirs and _same(asked, layer, site) else own for site, own in sites.items()
        }
    resized = {name: _resized(histories.get(name), own) for name, own in fresh["histories"].items()}
    return {"formats": formats, "histories": resized}


def _same(asked: tuple[Mapping[str, Any], Mapping[str, Any]], layer: str, site: str) -> bool:
    before, after = (config[layer].get(site) for config in asked)
    return before is not None and before == after


def _formats(recipe: Recipe, layers: Collection[str]) -> dict[str, dict[str, Any]]:
    """Layer -> rounding -> the format that the recipe asks for."""
    high = high_precision_layers(recipe, layers)
    return {
        layer: {
            rounded.name: rounded.cast.number_format
            for found in roundings(recipe.casts_at(layer, layer in high)).values()
            for rounded in found
        }
        for layer in layers
    }


def _weights(recipe: Recipe, layers: Collection[str]) -> dict[str, Any]:
    """Layer -> the cast to which a weight without a master is rounded."""
    high = high_precision_layers(recipe, layers)
    return {layer: roundings(recipe.casts_at(layer, layer in high))["weight"][0].cast for layer in layers}


def _resized(history: Tensor | None, own: Tensor) -> Tensor:
    """A history, newest first, in the length of `own`."""
    if history is None:
        return own
    new = torch.zeros_like(own)
    new[: len(history)] = history[: len(own)].to(own.device)
    return new
