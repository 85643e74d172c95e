"""What else than the format differs between two runs that are compared, so that nobody takes it for the format's doing.

Seeds, settings of measuring and of judging are left out: they cannot change a loss.  How a run is executed (device,
threads, versions) is taken from what it recorded, since a config may leave it to the machine.  A field that a published
recipe sets is covered by the recipe's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from altgrad.compare.origin import NOT_RECORDED, Origin
from altgrad.compare.pairing import DEFAULTS, NUMERICS, RESCUE, Settings, describe_field
from altgrad.config.published import published_fields
from altgrad.config.train_config import TrainConfig

_WITHOUT_EFFECT = TrainConfig.of_kind("seed", "measuring", "judging", "planning", "running")
_COMPARED = tuple(name for name in DEFAULTS if name not in _WITHOUT_EFFECT | {"format", "recipe"})
FORMAT_ALONE = "only the format"


def confounds(one: Settings, origin: Origin, other: Settings, other_origin: Origin) -> tuple[str, ...]:
    """Each difference besides the format: `lr 3e-4 vs 0.01`, `stored`, `torch 2.13 vs 2.14`; empty if there is none.

    A setting that the other run has at its default is given by its value alone.
    """
    found = []
    if one.intervention != other.intervention:
        found.append(f"intervention {one.intervention}" + _against(other.intervention))
    recipes = one.config.get("recipe"), other.config.get("recipe")
    if recipes[0] != recipes[1]:
        found.append(f"recipe {recipes[0] or 'none'}" + _against(recipes[1] or "none"))
    for name in _COMPARED:
        values = one.config[name], other.config[name]
        if values[0] == values[1] or (name in NUMERICS and _of_recipes(name, values, recipes)):
            continue
        said = describe_field(name, values[0])
        is_plain = name in NUMERICS | RESCUE and values[1] == DEFAULTS[name]
        found.append(said if is_plain else f"{said} vs {describe_field(name, values[1])}")
    coverage = origin.other_coverage(other_origin)
    found += [] if coverage is None else [coverage]
    found += origin.other_surroundings(other_origin)
    if not origin.vouches_for(other_origin):
        found.append(NOT_RECORDED)
    return tuple(found)


def joined(differences: Iterable[tuple[str, ...]]) -> str:
    """The differences of several pairs of runs in one text; `only the format` if there are none."""
    return ", ".join(dict.fromkeys(said for one in differences for said in one)) or FORMAT_ALONE


def _of_recipes(name: str, values: tuple[Any, Any], recipes: tuple[str | None, str | None]) -> bool:
    """Whether each value is that of its run's recipe, whose name is given already."""
    if recipes[0] == recipes[1]:
        return False
    usual = [published_fields(recipe).get(name, DEFAULTS[name]) for recipe in recipes]
    return values[0] == usual[0] and values[1] == usual[1]


def _against(value: str) -> str:
    return "" if value == "none" else f" vs {value}"
