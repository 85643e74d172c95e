"""Cells: the operands of the GEMMs of each layer, and the config changes that heal a set of them.

A healed operand is cast to BF16, which is never scaled, rounds to nearest and has float32's range.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from altgrad.config.cast import Gemm, GemmSite
from altgrad.config.operands import ALL_OPERANDS, Operand, high_precision_layers
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig

HEALED: Mapping[str, Any] = {
    "format": "BF16", "scaling": "dynamic", "rounding": "nearest", "overflow": "format", "scale_fp16": False,
}  # fmt: skip
_SHOWN = 3  # layers that are named one by one


class Cell(NamedTuple):
    """One operand of one GEMM in one layer."""

    layer: str
    gemm: Gemm
    site: GemmSite

    @property
    def operand(self) -> Operand:
        """The operand, whatever the layer."""
        return Operand(self.gemm, self.site)

    def __str__(self) -> str:
        return f"{self.operand} of {self.layer}"


Cells = frozenset[Cell]


def rounded_cells(recipes: Sequence[Recipe], layers: Sequence[str]) -> list[Cell]:
    """The cells that one of the recipes rounds to fewer bits than BF16, layer by layer in the model's order."""
    found: set[Cell] = set()
    for recipe in recipes:
        high = high_precision_layers(recipe, layers)
        for layer in layers:
            casts = recipe.casts_at(layer, layer in high)
            narrow = (o for o, cast in casts.items() if cast.number_format.scaled and not cast.scale_fp16)
            found |= {Cell(layer, operand.gemm, operand.site) for operand in narrow}
    every = (Cell(layer, operand.gemm, operand.site) for layer in layers for operand in ALL_OPERANDS)
    return [cell for cell in every if cell in found]


def healing(config: TrainConfig, cells: Collection[Cell], layers: Sequence[str]) -> dict[str, Any]:
    """The config change under which these cells are cast to BF16 and all others stay as they are."""
    return _layer_gemms(config, cells, layers, HEALED)


def rescaled(config: TrainConfig, cells: Collection[Cell], layers: Sequence[str]) -> dict[str, Any]:
    """The config change under which the scales of these cells follow the current amax."""
    return _layer_gemms(config, cells, layers, {"scaling": "dynamic"})


def _layer_gemms(
    config: TrainConfig, cells: Collection[Cell], layers: Sequence[str], leaf: Mapping[str, Any]
) -> dict[str, Any]:
    """The globs come last, in a spelling that the config does not use yet, so that they override all that it says."""
    operands = {layer: tuple(o for o in ALL_OPERANDS if Cell(layer, *o) in cells) for layer in layers}
    taken = {*config.layer_gemms, *(glob for phase in config.phases for glob in phase.get("layer_gemms", {}))}
    added: dict[str, Any] = {}
    everywhere = set(operands.values())
    if len(everywhere) == 1:
        operands = {"*": everywhere.pop()}
    for layer, healed in operands.items():
        if not healed:
            continue
        gemms: dict[str, dict[str, Any]] = {}
        for operand in healed:
            gemms.setdefault(operand.gemm, {})[operand.site] = dict(leaf)
        added[_unused("*" if layer == "*" else _escaped(layer), {*taken, *added})] = gemms
    changed: dict[str, Any] = {"layer_gemms": {**config.layer_gemms, **added}}
    if any("layer_gemms" in phase for phase in config.phases):
        changed["phases"] = [
            {**phase, "layer_gemms": {**phase["layer_gemms"], **added}} if "layer_gemms" in phase else phase
            for phase in config.phases
        ]
    native = {"native_fp8": False} if config.native_fp8 else {}  # FP8 GEMMs round no operand for one GEMM alone
    return {**changed, **native}


def _escaped(layer: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in layer)


def _unused(pattern: str, taken: Collection[str]) -> str:
    """Another spelling of a glob that matches the same names, if it is taken: `**` for `*`, `[h].0` for `h.0`."""
    if pattern not in taken:
        return pattern
    if set(pattern) == {"*"}:
        return _unused(pattern + "*", taken)
    place = next(i for i, char in enumerate(pattern) if char not in "[]" and pattern[i - 1 : i] != "[")
    return _unused(f"{pattern[:place]}[{pattern[place]}]{pattern[place + 1 :]}", taken)


def describe(cells: Collection[Cell], every: Collection[Cell]) -> str:
    """A set of cells in words: `dgrad.gradient of h.0.mlp.up`, `fprop.weight in all layers`, `all operands`."""
    if set(cells) == set(every):
        return "all operands"
    by_operands: dict[tuple[Operand, ...], list[str]] = {}
    for layer in dict.fromkeys(cell.layer for cell in sorted(cells)):
        own = tuple(operand for operand in ALL_OPERANDS if Cell(layer, *operand) in cells)
        by_operands.setdefault(own, []).append(layer)
    layers = {cell.layer for cell in every}
    return "; ".join(f"{_operands(own)} {_layers(named, layers)}" for own, named in by_operands.items())


def _operands(operands: Iterable[Operand]) -> str:
    found = tuple(operands)
    return "all operands" if found == ALL_OPERANDS else ", ".join(map(str, found))


def _layers(named: Sequence[str], layers: Collection[str]) -> str:
    if len(named) == len(layers) > 1:
        return "in all layers"
    if len(named) <= _SHOWN:
        return f"of {', '.join(named)}"
    return f"of {len(named)} layers, {named[0]} to {named[-1]}"
