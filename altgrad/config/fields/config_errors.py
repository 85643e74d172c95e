"""Errors of configs: one line for each wrong field, with its value, the accepted values and the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from altgrad.text.error_hints import cut, did_you_mean, shown

_MOST = 20  # lines of a message
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "fields by name, a mapping",
    "finite_number": "a finite number",
}
_LIMITS = {  # pydantic's error -> what the number must be, and the name under which the error has the limit
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


class ConfigError(ValueError):
    """A config that cannot be used; each line of the message names file, field, value and what is accepted."""


class FieldError(ConfigError):
    """Refused fields of a config.  `problems` holds (field, line) for each; the field is "" if several contradict."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [line for _, line in self.problems]
        return "\n".join(lines if len(lines) <= _MOST else [*lines[:_MOST], f"and {len(lines) - _MOST} more"])

    def within(self, source: str) -> FieldError:
        """The same error with `source` (a file name, say) in front of each line."""
        return FieldError((field, f"{source}: {line}") for field, line in self.problems)


def problem(detail: Any, known: Sequence[str]) -> tuple[str, str]:
    """(field, line) for one entry of pydantic's `ValidationError.errors()`; `known` are the names of all fields."""
    name = cut(".".join(str(part) for part in detail["loc"]))
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return (
            name,
            f"{name}: unknown field{did_you_mean(name, known) or '; `altgrad config` lists the fields'}",
        )
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        accepted = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        message = f"expected {detail['ctx']['expected']}{did_you_mean(value, accepted)}"
    elif kind == "string_pattern_mismatch":
        message = f"expected {detail['ctx']['pattern'].strip('^$()').replace('|', ', ')}"
    elif kind in _KINDS:
        message = f"expected {_KINDS[kind]}"
    elif kind in _LIMITS:
        word, limit = _LIMITS[kind]
        message = f"expected a number {word} {detail['ctx'][limit]:g}"
    elif kind == "too_short":
        message = f"expected a list of at least {detail['ctx']['min_length']}"
    if not name:
        return name, message
    told = f"format={shown(value)}"  # a message about a format begins with it, whatever the name of the field
    rest = message.removeprefix(told)
    return name, f"{name}={shown(value)}{rest}" if rest != message else f"{name}={shown(value)}: {message}"
