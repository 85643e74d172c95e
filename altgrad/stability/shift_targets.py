"""Which roundings a shift of the rescue ladder changes: those of the layers of a glob and of chosen operands."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from altgrad.config.operands import Operand
from altgrad.config.train_config import TrainConfig
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.kernel.site import Site


def shift_targets(
    config: TrainConfig, layers: Mapping[str, RoundedGemm], every_phase: bool = False
) -> list[tuple[RoundedGemm, str]]:
    """(layer, name of the rounding) of all that a shift changes in the present phase, or in every one.

    Raises ValueError if the glob matches no layer, if no layer has such an operand, or if an operand that is to be
    changed shares its rounding with one that is not: a rounding has one format.
    """
    named = {name: layer for name, layer in layers.items() if fnmatch.fnmatchcase(name, config.rescue_shift_layers)}
    if not named:
        raise ValueError(
            f"rescue_shift_layers={config.rescue_shift_layers!r} matches no layer; layers: {', '.join(layers)}"
        )
    found = []
    for layer in named.values():
        phases = [phase.by_name for phase in layer.phases] if every_phase else [layer.sites]
        found += [(layer, name) for sites in phases for name, site in sites.items() if _is_chosen(config, layer, site)]
    return found


def _is_chosen(config: TrainConfig, layer: RoundedGemm, site: Site) -> bool:
    words = config.rescue_shift_operands
    if words is None:
        return True
    operands = site.rounded.operands
    chosen = [operand for operand in operands if _named(operand, words)]
    if not chosen or len(chosen) == len(operands):
        return bool(chosen)
    other = next(operand for operand in operands if operand not in chosen)
    gemm, tensor = chosen[0]
    raise ValueError(
        f"rescue_shift_operands={words}: {chosen[0]} of {layer.name} shares its rounding with {other}; name both, or "
        f"give it a rounding of its own, with the same values: gemms={{{gemm}: {{{tensor}: {{axis: last}}}}}}"
    )


def _named(operand: Operand, words: list[str]) -> bool:
    return any(word in (operand.gemm, operand.site, str(operand)) for word in words)
