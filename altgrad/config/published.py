"""The published recipes: one YAML file each in `recipes/`, which `recipe: NAME` brings into a config by its name.

The fields of a recipe are defaults that a config's own fields override; of `gemms` single leaves are overridden:

    recipe: nvfp4                                            # everything numeric as in nvfp4.yaml, but
    gemms: {wgrad: {gradient: {rounding: nearest}}}          # this one operand rounded to nearest

A config that is written out holds the name and every field, and is read back as it is: a run is repeated by its
`run.json` alone, whatever becomes of the file.

No torch: see `train_config`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from altgrad.config.operands import casts_of, no_effect_of
from altgrad.formats import find_format
from altgrad.text.error_hints import did_you_mean, shown
from altgrad.text.yaml_text import NotYaml, read_yaml

ELEMENT_BITS = 8  # a wider format is what a recipe calls high precision
_FOLDER = Path(__file__).parent / "recipes"


class Published(BaseModel):
    """A recipe as it was published.  `exact` and `differs` say in sentences what of it is simulated and what is not."""

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
    """The published recipe of that name.  Raises ValueError, one line with the nearest name, for an unknown one."""
    if name not in published_names():
        near = did_you_mean(name, published_names()) or "; `python -m altgrad recipes` lists them"
        raise ValueError(f"no published recipe {shown(name)}{near}")
    return read_published(_FOLDER / f"{name}.yaml")


def read_published(file: Path) -> Published:
    """The recipe in a file.  Raises ValueError, one line, for a file that is none."""
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
    """The fields that a recipe's name stands for; none where there is no name, or one that is not known (any more)."""
    return published(name).fields if name in published_names() else {}


def with_published(fields: Mapping[str, Any], every: Collection[str]) -> dict[str, Any]:
    """A config's fields on top of those of the recipe that it names.

    every: the names of all fields of a recipe; a config that has all of them was written out and stands as it is.
    """
    name = fields.get("recipe")
    if not isinstance(name, str) or set(every) <= fields.keys():
        return dict(fields)
    theirs = published_fields(name)
    merged = {**theirs, **fields}
    if "gemms" in theirs and isinstance(fields.get("gemms"), Mapping):
        merged["gemms"] = merged_gemms(theirs["gemms"], fields["gemms"])
    return merged


def merged_gemms(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of mappings as one, in which the leaves of `above` count."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        merged[key] = merged_gemms(below[key], value) if both else value
    return merged


def own_gemms(gemms: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree that are not the same in the one below: what `merged_gemms` needs to make it again."""
    own: dict[str, Any] = {}
    for key, value in gemms.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            if inside := own_gemms(value, below[key]):
                own[key] = inside
        elif key not in below or below[key] != value:
            own[key] = value
    return own


def own_fields(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What of a written-out config its author said: the fields that are otherwise than the recipe's, or the default."""
    theirs = {**defaults, **published_fields(fields.get("recipe"))}
    own = {name: value for name, value in fields.items() if name not in theirs or theirs[name] != value}
    if "gemms" in own:
        own["gemms"] = own_gemms(own["gemms"], theirs["gemms"])
    return own


def check_shorthand(recipe: Any, given: Collection[str], defaults: Mapping[str, Any]) -> None:
    """Refuse a flat field that was given and changes nothing because `gemms` sets the same of every operand.

    Raises ValueError.  What has the recipe's value (the default where none is named) is not taken for given.
    """
    theirs = {**defaults, **published_fields(recipe.recipe)}
    whose = f"gemms of recipe={recipe.recipe!r}" if recipe.recipe else "gemms"
    for name, fields in no_effect_of(recipe.gemms).items():
        if name in given and (value := getattr(recipe, name)) != theirs[name]:
            raise ValueError(
                f"{name}={shown(value)} changes nothing: {whose} sets {fields} of every operand; change it there"
            )


def in_format(recipe: Any, name: str) -> dict[str, Any]:
    """Fields that give a recipe's rounded operands another format; those of more than 8 bits are left alone.

    Raises ValueError where the recipe rounds nothing to 8 bits or fewer.
    """

    def other(old: Any) -> Any:
        return name if isinstance(old, str) and find_format(old).bits <= ELEMENT_BITS else old

    def tree(node: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: tree(value) if isinstance(value, Mapping) else other(value) if key == "format" else value
            for key, value in node.items()
        }

    if all(cast.number_format.bits > ELEMENT_BITS for cast in casts_of(recipe).values()):
        raise ValueError("the recipe rounds no operand to 8 bits or fewer")
    flat = ("format", "weight_format", "activation_format", "gradient_format")
    changes: dict[str, Any] = {field: other(getattr(recipe, field)) for field in flat}
    changes["gemms"] = tree(recipe.gemms)
    changes["layer_formats"] = {glob: other(old) for glob, old in recipe.layer_formats.items()}
    return changes
