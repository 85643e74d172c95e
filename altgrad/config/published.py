"""The published recipes: each is a YAML file in `recipes/`, and `recipe: NAME` in a config selects it.

The fields of a recipe are defaults, which the config's own fields override.  In `gemms` single leaves are overridden:

    recipe: nvfp4                                            # everything numeric as in nvfp4.yaml, but
    gemms: {wgrad: {gradient: {rounding: nearest}}}          # this one operand rounded to nearest

A config that was written out has the recipe's name and every field, and is read without the recipe's file: `run.json`
is enough to repeat a run, even if the file has changed.

No torch: see `train_config`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from altgrad.config.operands import casts_of, no_effect_of
from altgrad.formats import find_format
from altgrad.text.error_hints import did_you_mean, shown
from altgrad.text.yaml_text import NotYaml, read_yaml

if TYPE_CHECKING:
    from altgrad.config.recipe import Recipe

ELEMENT_BITS = 8  # a recipe calls wider formats high precision
_FOLDER = Path(__file__).parent / "recipes"
# Fields that a config lacks which an earlier version wrote out: it has their defaults, not those of its recipe.
_LATER = {"phases", "layer_gemms", "rounding_seed"}


class Published(BaseModel):
    """A published recipe.  `exact` and `differs`: sentences on what is simulated exactly and what is different here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="paper or repository, section, year, arXiv id")
    summary: str = Field(min_length=1, description="one sentence")
    exact: list[str] = Field(min_length=1)
    differs: list[str] = Field(min_length=1)
    fields: dict[str, Any] = Field(min_length=1, description="fields of a Recipe")


@cache
def published_names() -> tuple[str, ...]:
    """The names of all published recipes."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


@cache
def published(name: str) -> Published:
    """The published recipe with this name.  Raises ValueError, with the nearest known name, for an unknown one."""
    if name not in published_names():
        near = did_you_mean(name, published_names()) or "; `altgrad recipes` lists them"
        raise ValueError(f"no published recipe {shown(name)}{near}")
    return read_published(_FOLDER / f"{name}.yaml")


def read_published(file: Path) -> Published:
    """Read a recipe from a file.  Raises ValueError, one line, for an invalid one."""
    try:
        return Published.model_validate(read_yaml(file))
    except NotYaml as error:
        raise ValueError(f"{file.name}: {error}") from error
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        near = did_you_mean(where, Published.model_fields) if detail["type"] == "extra_forbidden" else ""
        raise ValueError(f"{file.name}: {where}: {detail['msg']}{near}") from None


def published_fields(name: str | None) -> Mapping[str, Any]:
    """The fields of the recipe with this name; empty for None and for an unknown name, as in an old `run.json`."""
    return published(name).fields if name in published_names() else {}


def with_published(fields: Mapping[str, Any], every: Collection[str]) -> dict[str, Any]:
    """The fields of a config, completed by those of the recipe that it names.

    `every`: the names of all fields of a recipe.  A config that has all of them was written out and is not changed.
    """
    name = fields.get("recipe")
    if not isinstance(name, str) or set(every) - _LATER <= fields.keys():
        return dict(fields)
    theirs = published_fields(name)
    merged = {**theirs, **fields}
    if "gemms" in theirs and isinstance(fields.get("gemms"), Mapping):
        merged["gemms"] = merged_gemms(theirs["gemms"], fields["gemms"])
    return merged


def merged_gemms(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of mappings; a leaf of `above` replaces that of `below`.

    Example: {wgrad: {hadamard: 16, axis: last}} and {wgrad: {hadamard: 0}} give {wgrad: {hadamard: 0, axis: last}}.
    """
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        merged[key] = merged_gemms(below[key], value) if both else value
    return merged


def own_gemms(gemms: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree that differ from those of `below`: `merged_gemms` of both is the whole tree again."""
    own: dict[str, Any] = {}
    for key, value in gemms.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            if inside := own_gemms(value, below[key]):
                own[key] = inside
        elif key not in below or below[key] != value:
            own[key] = value
    return own


def own_fields(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a written-out config that differ from those of its recipe or, without one, from the defaults."""
    theirs = {**defaults, **published_fields(fields.get("recipe"))}
    own = {name: value for name, value in fields.items() if name not in theirs or theirs[name] != value}
    if "gemms" in own:
        own["gemms"] = own_gemms(own["gemms"], theirs["gemms"])
    return own


def check_shorthand(recipe: Recipe, given: Collection[str], defaults: Mapping[str, Any]) -> None:
    """Raises ValueError for a flat field that was given but has no effect, because `gemms` sets it for every operand.

    A field with the recipe's value, or without a recipe the default, does not count as given.
    """
    theirs = {**defaults, **published_fields(recipe.recipe)}
    whose = f"gemms of recipe={recipe.recipe!r}" if recipe.recipe else "gemms"
    for name, fields in no_effect_of(recipe.gemms).items():
        if name in given and (value := getattr(recipe, name)) != theirs[name]:
            raise ValueError(
                f"{name}={shown(value)} changes nothing: {whose} sets {fields} of every operand; change it there"
            )


def in_format(recipe: Recipe, name: str) -> dict[str, Any]:
    """The field changes that give a recipe's rounded operands another format; formats over 8 bits stay.

    Raises ValueError if the recipe rounds no operand to 8 bits or fewer.
    """

    def other(old: Any) -> Any:
        return name if isinstance(old, str) and find_format(old).bits <= ELEMENT_BITS else old

    def tree(node: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: tree(value) if isinstance(value, Mapping) else other(value) if key == "format" else value
            for key, value in node.items()
        }

    def changed(fields: Mapping[str, Any]) -> dict[str, Any]:
        found = {field: other(value) if field in flat else value for field, value in fields.items()}
        if "gemms" in fields:
            found["gemms"] = tree(fields["gemms"])
        if "layer_formats" in fields:
            found["layer_formats"] = {glob: other(old) for glob, old in fields["layer_formats"].items()}
        return found

    phases = [recipe.in_phase(number) for number in range(len(recipe.phases) + 1)]
    if all(cast.number_format.bits > ELEMENT_BITS for phase in phases for cast in casts_of(phase).values()):
        raise ValueError("the recipe rounds no operand to 8 bits or fewer")
    flat = ("format", "weight_format", "activation_format", "gradient_format")
    changes = changed({field: getattr(recipe, field) for field in (*flat, "gemms", "layer_formats")})
    if recipe.phases:
        changes["phases"] = [changed(phase) for phase in recipe.phases]
    return changes
