"""The six casts of a linear layer, derived from a recipe: one cast for each operand of its three GEMMs.

The flat fields of a recipe (`format`, `gradient_format`, `scale_granularity`, ...) fill all six casts; `gemms` then
changes single ones.  For example `format: E4M3` with
`gemms: {wgrad: {hadamard: 16, gradient: {rounding: stochastic}}}` gives

    fprop.activation  E4M3          dgrad.gradient  E4M3          wgrad.gradient    E4M3, rotated, stochastic
    fprop.weight      E4M3          dgrad.weight    E4M3          wgrad.activation  E4M3, rotated

With one scale per tensor the two casts of the weight are equal, so the weight is rounded once for both GEMMs.  The
activation is rounded twice: fprop sees it unrotated, wgrad rotated (see `roundings`).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from altgrad.config.cast import GEMM_SITES, GEMMS, Cast, Dimension, Gemm, GemmSite
from altgrad.config.fields.config_errors import problem
from altgrad.formats import find_format
from altgrad.text.error_hints import did_you_mean

if TYPE_CHECKING:
    from altgrad.config.recipe import Recipe

_TILES = {"tensor": "tensor", "row": "row", "block": "1x32"}
# What the flat fields fill: fields of a cast, of the operands of these tensors.
_FILLS: Mapping[str, tuple[tuple[str, ...], tuple[GemmSite, ...]]] = {
    "format": (("format",), GEMM_SITES),
    "weight_format": (("format",), ("weight",)),
    "activation_format": (("format",), ("activation",)),
    "gradient_format": (("format",), ("gradient",)),
    "overflow": (("overflow",), GEMM_SITES),
    "scale_granularity": (("block",), GEMM_SITES),
    "block_axis": (("axis",), GEMM_SITES),
    "scaling": (("scaling",), GEMM_SITES),
    "scale_power_of_two": (("scale_rule", "scale_format"), GEMM_SITES),
    "amax_history": (("amax_history",), GEMM_SITES),
    "amax_factor": (("amax_factor",), ("activation", "gradient")),
    "rounding": (("rounding",), GEMM_SITES),
}
FLAT_FIELDS = tuple(_FILLS)
_BLOCK_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class Operand(NamedTuple):
    """A tensor as one GEMM sees it: `wgrad.gradient`."""

    gemm: Gemm
    site: GemmSite

    def __str__(self) -> str:
        return f"{self.gemm}.{self.site}"

    @property
    def contracted(self) -> Dimension:
        """The dimension of the operand's tensor that the GEMM contracts."""
        return GEMMS[self.gemm][self.site]


ALL_OPERANDS: tuple[Operand, ...] = tuple(Operand(gemm, site) for gemm, sites in GEMMS.items() for site in sites)


class Rounded(NamedTuple):
    """One rounding of one tensor, and the operands that use its result.

    Two GEMMs share one rounding if their casts of the tensor are equal and lie along the same dimension.
    """

    cast: Cast
    dimension: Dimension | None  # see `Cast.dimension`
    operands: tuple[Operand, ...]

    @property
    def name(self) -> str:
        """`activation` if every GEMM with that tensor uses this rounding, else with the GEMM: `wgrad.activation`."""
        site = self.operands[0].site
        uses = sum(site in sites for sites in GEMMS.values())
        return site if len(self.operands) == uses else str(self.operands[0])


def tensor_of(site: str) -> str:
    """The tensor in the name of a rounding: `activation` for `activation` and for `wgrad.activation`."""
    return site.rpartition(".")[2]


def casts_of(recipe: Recipe, layer: str = "", high_precision: bool = False) -> dict[Operand, Cast]:
    """The six casts of a layer under a `Recipe`; `high_precision`: the layer is one of those kept in BF16.

    If a `layer_formats` glob gives the layer a format that is never scaled (BF16, FP32), `gemms` is ignored for that
    layer; any other format replaces the format of all six casts.  `layer_gemms` overrides both.  Raises ValueError for
    contradictory fields.
    """
    forced = "BF16" if high_precision else _named_format(recipe.layer_formats, layer)
    plain = forced is not None and not find_format(forced).scaled
    casts = {}
    for operand in ALL_OPERANDS:
        fields = _flat_fields(recipe, operand.site)
        if not plain:
            fields |= _altered(recipe.gemms, operand)
        if forced is not None:
            fields = {name: value for name, value in fields.items() if name != "scale_fp16"} | {"format": forced}
        for pattern, gemms in recipe.layer_gemms.items():
            if fnmatch.fnmatchcase(layer, pattern):
                fields |= _altered(gemms, operand)
        try:
            casts[operand] = Cast(**fields)
        except ValidationError as error:
            raise ValueError(f"{operand}: {problem(error.errors()[0], tuple(Cast.model_fields))[1]}") from None
    _check_rotations(casts)
    return casts


def roundings(casts: Mapping[Operand, Cast]) -> dict[GemmSite, list[Rounded]]:
    """Tensor -> the roundings that its operands need: operands with equal casts share one (see `Rounded`)."""
    found: dict[GemmSite, list[Rounded]] = {}
    for site in GEMM_SITES:
        shared: dict[tuple[Cast, Dimension | None], list[Operand]] = {}
        for operand, cast in casts.items():
            if operand.site == site:
                shared.setdefault((cast, cast.dimension(operand.contracted)), []).append(operand)
        found[site] = [Rounded(cast, dimension, tuple(operands)) for (cast, dimension), operands in shared.items()]
    return found


def high_precision_layers(recipe: Recipe, layers: Iterable[str]) -> set[str]:
    """Names of the layers in the first and last repeated blocks that the recipe keeps in BF16.

    The first number in a layer's name is its block: `h.11.mlp.up` lies in block 11.  A fraction of the blocks is
    rounded up: 0.15 of 12 blocks are 2 blocks.
    """
    number = {name: int(match[1]) for name in layers if (match := _BLOCK_NUMBER.search(name))}
    blocks = sorted(set(number.values()))
    first, last = (_count(wanted, len(blocks)) for wanted in (recipe.high_first_blocks, recipe.high_last_blocks))
    high = {*blocks[:first], *blocks[len(blocks) - last :]}
    return {name for name, block in number.items() if block in high}


def check_gemms(gemms: Mapping[str, Any], where: str = "gemms") -> None:
    """Raises ValueError for a name in `gemms` that is not a GEMM, an operand of it or a field of a cast."""
    for gemm, fields in gemms.items():
        if gemm not in GEMMS:
            raise ValueError(f"{where}: {gemm!r} is no GEMM; known: {', '.join(GEMMS)}{did_you_mean(gemm, GEMMS)}")
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where}.{gemm}: expected fields of a cast or of its operands, found {fields!r:.60}")
        sites = GEMMS[gemm]  # type: ignore[index]
        for name, value in fields.items():
            if name in Cast.model_fields:
                continue
            if name not in sites or not isinstance(value, Mapping):
                raise ValueError(
                    f"{where}.{gemm}.{name}: no operand of {gemm} ({', '.join(sites)}) and no field of a cast "
                    f"({', '.join(Cast.model_fields)}){did_you_mean(name, [*sites, *Cast.model_fields])}"
                )
            for field in value:
                if field not in Cast.model_fields:
                    near = did_you_mean(field, Cast.model_fields)
                    known = ", ".join(Cast.model_fields)
                    raise ValueError(f"{where}.{gemm}.{name}.{field}: no field of a cast; known: {known}{near}")


def no_effect_of(gemms: Mapping[str, Any]) -> dict[str, str]:
    """Flat fields without effect -> the fields of a cast that `gemms` sets for all of their operands instead."""
    if not gemms:
        return {}
    return {
        name: " and ".join(fields)
        for name, (fields, sites) in _FILLS.items()
        if all(set(fields) <= _altered(gemms, operand).keys() for operand in ALL_OPERANDS if operand.site in sites)
    }


def _flat_fields(recipe: Recipe, site: GemmSite) -> dict[str, Any]:
    """The fields of a tensor's cast, translated from the flat fields of a recipe."""
    weight = site == "weight"
    own = getattr(recipe, f"{site}_format")
    granularity = recipe.scale_granularity
    return {
        "format": own or recipe.format,
        "overflow": recipe.overflow,
        "block": _TILES.get(granularity, granularity),
        # scale_granularity="row": each row lies along the last dimension, whatever the GEMM contracts
        "axis": "last" if granularity == "row" else recipe.block_axis,
        # delayed scaling is for activations and gradients: the amax of a weight is known before it is rounded
        "scaling": "dynamic" if weight and recipe.scaling == "delayed" else recipe.scaling,
        "scale_rule": "ceil" if recipe.scale_power_of_two else "real",
        "scale_format": "E8M0" if recipe.scale_power_of_two else "FP32",
        "amax_history": recipe.amax_history,
        "amax_factor": 1.0 if weight else recipe.amax_factor,
        "rounding": recipe.rounding,
    }


def _altered(gemms: Mapping[str, Any], operand: Operand) -> dict[str, Any]:
    """The fields that `gemms` sets for an operand: those of its GEMM, overridden by those of the operand itself."""
    fields = gemms.get(operand.gemm, {})
    shared = {name: value for name, value in fields.items() if name in Cast.model_fields}
    return shared | dict(fields.get(operand.site, {}))


def _named_format(layer_formats: Mapping[str, str], layer: str) -> str | None:
    """The format of the last glob that matches a layer's name; None if no glob matches."""
    found = None
    for pattern, name in layer_formats.items():
        if fnmatch.fnmatchcase(layer, pattern):
            found = name
    return found


def _check_rotations(casts: Mapping[Operand, Cast]) -> None:
    """Raises ValueError unless both operands of each GEMM are rotated alike: only then the product is unchanged."""
    for gemm, sites in GEMMS.items():
        rotations = {(casts[Operand(gemm, s)].hadamard, casts[Operand(gemm, s)].hadamard_signs) for s in sites}
        if len(rotations) > 1:
            raise ValueError(
                f"gemms.{gemm}: both operands must be rotated alike, found {sorted(rotations)}; set hadamard under "
                f"gemms.{gemm}, not under one operand"
            )


def _count(wanted: float, blocks: int) -> int:
    """`wanted` as a number of blocks: from 1 on it is one already, below 1 it is a fraction that is rounded up."""
    return min(blocks, int(wanted) if wanted >= 1 else -int(-wanted * blocks // 1))
