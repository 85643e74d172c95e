"""Options of a command as fields of one frozen dataclass: each is declared once, with its default, type and help.

The parser, the defaults, the spelling on the command line and the groups in `--help` are read from that declaration:

    results: str = option("where", location, "results root", default="results", metavar="DIR")

declares the option `--results DIR` in the group "where" of `--help`, with the default "results".
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """The option of a command line that sets a field.

    `kind`: converts a word to the value (see `option_parser`); bool declares a switch.  `flag`: the spelling, if it is
    not the field's name.  `many`: the option takes several words and may be repeated.  `bare`: the value if no word
    follows the option.  `environment`: the environment variable with the default.  `is_secret`: the value is never
    shown or stored.
    """

    group: str
    kind: Callable[[str], Any]
    help: str
    flag: str | None = None
    metavar: str | None = None
    many: bool = False
    choices: Sequence[str] | None = None
    bare: str | None = None
    environment: str | None = None
    is_secret: bool = False


def option(group: str, kind: Callable[[str], Any], help: str, *, default: Any = None, **details: Any) -> Any:
    """Declare a dataclass field as an option; `details` as for `Option`.  The default None means not given."""
    declared = Option(group, kind, help, **details)
    return dataclasses.field(default=default, repr=not declared.is_secret, metadata={"option": declared})


def options_of(record: Any) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Flag -> field and option of a record or its class, in the order of declaration."""
    fields = [field for field in dataclasses.fields(record) if "option" in field.metadata]
    return {_flag(field): (field, field.metadata["option"]) for field in fields}


def add_options(parser: argparse.ArgumentParser, record: type) -> None:
    """Add the options of a record to a parser, each in its group; the parser stores values under the field names."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag, (field, declared) in options_of(record).items():
        group = groups.setdefault(declared.group, parser.add_argument_group(declared.group))
        group.add_argument(flag, dest=field.name, **_argument(field, declared))


def given(record: Any, group: str) -> dict[str, Any]:
    """Flag -> value of the options of a group that are not at their default, without secrets."""
    return {
        flag: getattr(record, field.name)
        for flag, (field, declared) in options_of(record).items()
        if declared.group == group and not declared.is_secret and getattr(record, field.name) != field.default
    }


def command_words(options: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give these options (flag -> value)."""
    words: list[str] = []
    for flag, value in options.items():
        if value is True:
            words.append(flag)
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag, *(f"{one:g}" if isinstance(one, float) else str(one) for one in values)]
    return words


def masked(words: Sequence[str], record: Any) -> list[str]:
    """A command line with *** for the values of secret options: `--notify URL` and `--notify=URL`."""
    secrets = {flag for flag, (_, declared) in options_of(record).items() if declared.is_secret}
    kept = [f"{flag}=***" if (flag := word.partition("=")[0]) in secrets and "=" in word else word for word in words]
    return ["***" if before in secrets else word for before, word in zip(["", *kept], kept, strict=False)]


def without_secrets(words: Sequence[str], record: Any) -> list[str]:
    """A command line without its secret options."""
    secrets = {flag for flag, (_, declared) in options_of(record).items() if declared.is_secret}
    kept = [word for word in words if word.partition("=")[0] not in secrets or "=" not in word]
    return [word for before, word in zip(["", *kept], kept, strict=False) if not {before, word} & secrets]


def _flag(field: dataclasses.Field[Any]) -> str:
    declared: Option = field.metadata["option"]
    return declared.flag or "--" + field.name.replace("_", "-")


def _argument(field: dataclasses.Field[Any], declared: Option) -> dict[str, Any]:
    """The arguments of argparse's `add_argument` for an option."""
    default, said = field.default, str(field.default)
    if declared.environment is not None:
        default, said = os.environ.get(declared.environment) or default, f"${declared.environment}"
    shown = default not in (None, False) or declared.environment is not None
    found: dict[str, Any] = {"default": default, "help": declared.help + (f" (default: {said})" if shown else "")}
    if declared.kind is bool:
        return found | {"action": "store_true"}
    found |= {"type": declared.kind, "metavar": declared.metavar}
    if declared.many:
        found |= {"nargs": "+", "action": "extend"}
    if declared.choices is not None:
        found |= {"choices": declared.choices}
    if declared.bare is not None:
        found |= {"nargs": "?", "const": declared.bare}
    return found
