"""The config fields as a reader wants them: by what they are for, with default, accepted values and meaning."""

from __future__ import annotations

import fnmatch
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from altgrad.config.train_config import TrainConfig
from altgrad.text.error_hints import did_you_mean

KINDS = {
    "numeric": "How numbers are rounded",
    "seed": "Seed",
    "model": "Model",
    "data": "Data",
    "workload": "How much is trained and evaluated",
    "optimisation": "Optimisation",
    "rescue": "Interventions",
    "measuring": "Measuring",
    "judging": "Collapse rules",
    "running": "Where and how it runs",
    "planning": "Planning",
}
_NARROWEST = 40  # columns at least


@dataclass(frozen=True)
class FieldRow:
    """A field: its default as a config file has it, the values that it takes, and what it means."""

    name: str
    default: str
    values: Sequence[str]
    meaning: str


def fields_by_kind() -> Iterator[tuple[str, list[FieldRow]]]:
    """(title, fields) of each kind of field, in the order of `KINDS`."""
    traits = TrainConfig.traits()
    properties = TrainConfig.model_json_schema()["properties"]
    assert {trait.kind for trait in traits.values()} <= KINDS.keys()
    for kind, title in KINDS.items():
        yield (
            title,
            [
                FieldRow(name, as_yaml(info.default), list(_values(properties[name])), info.description or "")
                for name, info in TrainConfig.model_fields.items()
                if traits[name].kind == kind
            ],
        )


def as_yaml(value: Any) -> str:
    """A default as a config file has it: `null`, `true`, `0.1`."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def show_fields(console: Console, wanted: Sequence[str]) -> None:
    """Print the fields whose names match one of the globs, or all.  Raises ValueError for a glob that matches none."""
    names = list(TrainConfig.model_fields)
    for glob in wanted:
        if not fnmatch.filter(names, glob):
            raise ValueError(f"{glob}: no config field has this name{did_you_mean(glob, names)}")
    width = max(_NARROWEST, console.width)
    for title, rows in fields_by_kind():
        rows = [row for row in rows if not wanted or any(fnmatch.fnmatchcase(row.name, glob) for glob in wanted)]
        if rows:
            console.print(Text(f"\n{title}", "bold"))
        for row in rows:
            values = " or ".join(row.values).replace("`", "")
            head = Text(f"  {row.name}: ", "cyan").append(row.default, "bold default").append(f"  ({values})", "dim")
            console.print(head, soft_wrap=True, highlight=False)
            lines = textwrap.wrap(row.meaning, width, initial_indent="    ", subsequent_indent="    ")
            console.print(Text("\n".join(lines)), soft_wrap=True, highlight=False)


def _values(schema: Mapping[str, Any]) -> Iterator[str]:
    """What a field takes, in a few words for each kind of value."""
    for part in schema.get("anyOf", [schema]):
        if part.get("type") != "null":
            yield _kind(part)


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{as_yaml(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{as_yaml(schema['const'])}`"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    words["array"] = "list"
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[key]:g}" for key, word in signs.items() if key in schema]
    return ", ".join([words.get(schema.get("type", ""), "mapping"), *limits])
