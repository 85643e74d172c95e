"""Formats and amax histories of a model's sites in a checkpoint: made from the sites, and checked before loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from altgrad.quantization.kernel.site import Site

SiteKey = tuple[str, str]  # layer and rounding: weight, or wgrad.activation where GEMMs differ
Sites = Mapping[SiteKey, Site]


def formats_of(sites: Sites) -> dict[str, dict[str, tuple[str, str]]]:
    """Layer -> site -> name and overflow rule of its format."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for (layer, name), site in sites.items():
        found.setdefault(layer, {})[name] = (site.format.name, site.format.overflow)
    return found


def histories_of(sites: Sites) -> dict[str, Tensor]:
    """Copies of the amax histories of delayed scaling, by `layer.site`."""
    return {f"{layer}.{name}": site.history.clone() for (layer, name), site in sites.items() if site.delayed}


def check_phases(state: Mapping[str, Any], phases: Sequence[Sites]) -> None:
    """Raise ValueError unless a state has the formats and histories of these phases, the first at its top level."""
    kept = [state, *state.get("phases", [])]
    if len(kept) != len(phases):
        raise ValueError(
            f"quantised state: phases: {len(kept) - 1}, here {len(phases) - 1}; it must be of the same model and recipe"
        )
    for found, sites in zip(kept, phases, strict=True):
        histories = histories_of(sites)
        check_names("formats", formats_of(sites), found)
        check_names("histories", histories, found)
        for name, history in histories.items():
            if found["histories"][name].shape != history.shape:
                raise ValueError(
                    f"quantised state: the history of {name} has {len(found['histories'][name])} amaxes; "
                    f"amax_history={len(history)} here"
                )


def check_names(what: str, ours: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise ValueError unless the entry `what` of a state has the same names as ours."""
    given = state.get(what)
    if given is None or set(given) != set(ours):
        there = "nothing" if given is None else ", ".join(sorted(set(given) ^ set(ours))) + " on one side only"
        raise ValueError(f"quantised state: {what}: {there}; it must be of the same model and recipe")
