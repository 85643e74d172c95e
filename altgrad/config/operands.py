"""From a recipe to the casts of a layer's six operands.

The flat fields (`format`, `gradient_format`, `scale_granularity`, ...) are a shorthand that fills all six; `gemms` then
alters single ones.  `gemms: {wgrad: {hadamard: 16, gradient: {rounding: stochastic}}}` rotates both operands of wgrad
and rounds one of them stochastically.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from altgrad.config.cast import GEMM_SITES, GEMMS, Cast, Dimension, Gemm, GemmSite
from altgrad.formats import find_format

_TILES = {"tensor": "tensor", "row": "row", "block": "1x32"}
_BLOCK_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class Operand(NamedTuple):
    """A tensor as one GEMM sees it: `wgrad.gradient`."""

    gemm: Gemm
    site: GemmSite

    def __str__(self) -> str:
        return f"{self.gemm}.{self.site}"

    @property
    def contracted(self) -> Dimension:
        """Which dimension of its tensor the GEMM contracts."""
        return GEMMS[self.gemm][self.site]


ALL_OPERANDS: tuple[Operand, ...] = tuple(Operand(gemm, site) for gemm, sites in GEMMS.items() for site in sites)


class Rounded(NamedTuple):
    """One rounding of one tensor, and the operands that it serves.

    Two GEMMs that see the same cast of the same tensor along the same dimension share one rounding.
    """

    cast: Cast
    dimension: Dimension | None  # see `Cast.dimension`
    operands: tuple[Operand, ...]

    @property
    def name(self) -> str:
        """The site's name where it serves every GEMM that the tensor enters, else `wgrad.activation`."""
        site = self.operands[0].site
        uses = sum(site in sites for sites in GEMMS.values())
        return site if len(self.operands) == uses else str(self.operands[0])


def tensor_of(site: str) -> str:
    """The tensor of a rounding's name: `wgrad.activation` is of `activation`."""
    return site.rpartition(".")[2]


def casts_of(recipe: Any, layer: str = "", high_precision: bool = False) -> dict[Operand, Cast]:
    """The six casts of a layer under a `Recipe`; `high_precision`: the layer is one of those that stay in BF16.

    A `layer_formats` glob that leads to a format that is never scaled (BF16, FP32) sets `gemms` aside for that layer;
    another one replaces the format of all six casts.  Raises ValueError for fields that contradict each other.
    """
    forced = "BF16" if high_precision else _named_format(recipe.layer_formats, layer)
    plain = forced is not None and not find_format(forced).scaled
    casts = {}
    for operand in ALL_OPERANDS:
        fields = _flat_fields(recipe, operand.site)
        if not plain:
            fields |= _altered(recipe.gemms, operand)
        if forced is not None:
            fields["format"] = forced
        try:
            casts[operand] = Cast(**fields)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{operand}: {message}") from None
    _check_rotations(casts)
    return casts


def roundings(casts: Mapping[Operand, Cast]) -> dict[GemmSite, list[Rounded]]:
    """For each tensor the roundings that its operands need: one where they agree, else one each."""
    found: dict[GemmSite, list[Rounded]] = {}
    for site in GEMM_SITES:
        shared: dict[tuple[Cast, Dimension | None], list[Operand]] = {}
        for operand, cast in casts.items():
            if operand.site == site:
                shared.setdefault((cast, cast.dimension(operand.contracted)), []).append(operand)
        found[site] = [Rounded(cast, dimension, tuple(operands)) for (cast, dimension), operands in shared.items()]
    return found


def high_precision_layers(recipe: Any, layers: Iterable[str]) -> set[str]:
    """The layers inside the first and last repeated blocks that the recipe leaves in BF16.

    A block is known by the first number in a layer's name: `h.11.mlp.up` lies in block 11.  A share of the blocks is
    rounded up: 0.15 of 12 blocks are 2.
    """
    number = {name: int(match[1]) for name in layers if (match := _BLOCK_NUMBER.search(name))}
    blocks = sorted(set(number.values()))
    first, last = (_count(wanted, len(blocks)) for wanted in (recipe.high_first_blocks, recipe.high_last_blocks))
    high = {*blocks[:first], *blocks[len(blocks) - last :]}
    return {name for name, block in number.items() if block in high}


def check_gemms(gemms: Mapping[str, Any]) -> None:
    """Refuse names in `gemms` that are no GEMM, operand or field of a cast.  Raises ValueError."""
    for gemm, fields in gemms.items():
        if gemm not in GEMMS:
            raise ValueError(f"gemms: {gemm!r} is no GEMM; known: {', '.join(GEMMS)}")
        if not isinstance(fields, Mapping):
            raise ValueError(f"gemms.{gemm}: expected fields of a cast or of its operands, found {fields!r:.60}")
        sites = GEMMS[gemm]  # type: ignore[index]
        for name, value in fields.items():
            if name in Cast.model_fields:
                continue
            if name not in sites or not isinstance(value, Mapping):
                raise ValueError(
                    f"gemms.{gemm}.{name}: no operand of {gemm} ({', '.join(sites)}) and no field of a cast "
                    f"({', '.join(Cast.model_fields)})"
                )
            for field in value:
                if field not in Cast.model_fields:
                    raise ValueError(f"gemms.{gemm}.{name}.{field}: known fields: {', '.join(Cast.model_fields)}")


def _flat_fields(recipe: Any, site: GemmSite) -> dict[str, Any]:
    """The fields of a cast that the flat fields of a recipe mean for a tensor."""
    weight = site == "weight"
    own = getattr(recipe, f"{site}_format")
    granularity = recipe.scale_granularity
    return {
        "format": own or recipe.format,
        "overflow": recipe.overflow,
        "block": _TILES.get(granularity, granularity),
        # rows along the last dimension in every GEMM are what the flat field has always meant
        "axis": "last" if granularity == "row" else recipe.block_axis,
        # a weight's own amax is known when it is rounded
        "scaling": "dynamic" if weight and recipe.scaling == "delayed" else recipe.scaling,
        "scale_rule": "ceil" if recipe.scale_power_of_two else "real",
        "scale_format": "E8M0" if recipe.scale_power_of_two else "FP32",
        "amax_history": recipe.amax_history,
        "amax_factor": 1.0 if weight else recipe.amax_factor,
        "rounding": recipe.rounding,
    }


def _altered(gemms: Mapping[str, Any], operand: Operand) -> dict[str, Any]:
    """What `gemms` says of an operand: its GEMM's fields, then its own."""
    fields = gemms.get(operand.gemm, {})
    shared = {name: value for name, value in fields.items() if name in Cast.model_fields}
    return shared | dict(fields.get(operand.site, {}))


def _named_format(layer_formats: Mapping[str, str], layer: str) -> str | None:
    """The format of the last glob that matches a layer's name."""
    found = None
    for pattern, name in layer_formats.items():
        if fnmatch.fnmatchcase(layer, pattern):
            found = name
    return found


def _check_rotations(casts: Mapping[Operand, Cast]) -> None:
    """A rotation leaves a product unchanged only if both of its operands are rotated alike."""
    for gemm, sites in GEMMS.items():
        rotations = {(casts[Operand(gemm, s)].hadamard, casts[Operand(gemm, s)].hadamard_signs) for s in sites}
        if len(rotations) > 1:
            raise ValueError(
                f"gemms.{gemm}: both operands must be rotated alike, found {sorted(rotations)}; set hadamard under "
                f"gemms.{gemm}, not under one operand"
            )


def _count(wanted: float, blocks: int) -> int:
    """A number of blocks, or a share of them rounded up."""
    return min(blocks, int(wanted) if wanted >= 1 else -int(-wanted * blocks // 1))
