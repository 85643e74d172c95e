"""The reader of config files and of the VALUE in `--set KEY=VALUE`: YAML 1.2, core schema.

PyYAML parses the text, but the type of a scalar is decided here: PyYAML follows YAML 1.1, in which `no` is false,
`1:30` is 90, `010` is 8 and `6e-4` is a string.  In the core schema of 1.2 (section 10.3.2) these are the string `no`,
the string `1:30`, the number 10 and the number 0.0006.  This reader is stricter than YAML, so that nothing in a config
has a surprising meaning:

- a repeated key, an alias (`*name`), a tag (`!!int`), a second document, and a comment after a value on the command
  line are errors (ten aliases in ten lines can also expand to a gigabyte);
- keys are text, also `0` in `layer_formats: {0: BF16}`;
- the limits are 16 levels and 64 KiB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from altgrad.text.error_hints import cut, shown

_LONGEST = 1 << 16  # characters
_DEEPEST = 16  # levels
_MOST_DIGITS = 100
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE, _FALSE = re.compile("true|True|TRUE"), re.compile("false|False|FALSE")
_INTEGER = {
    10: re.compile(r"[-+]?[0-9]+"),
    8: re.compile(r"0o[0-7]+"),
    16: re.compile(r"0x[0-9a-fA-F]+"),
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*")  # needs no quotes, unless it is a word such as `true`
_OTHERWISE_FALSE_OR_TRUE = {"yes", "no", "on", "off", "y", "n"}  # booleans in YAML 1.1
_TAGS = {
    yaml.ScalarNode: "tag:yaml.org,2002:str",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.MappingNode: "tag:yaml.org,2002:map",
}


class NotYaml(ValueError):
    """A text that this reader refuses; the message is one line: where, what is wrong, what would be right."""


def parse_value(text: str) -> Any:
    """The value of a text from a command line, such as `6e-4`, `true`, `null`, `{lm_head: BF16}`.  Raises NotYaml."""
    node = _compose(text)
    end = 0 if node is None else node.end_mark.index
    if text[end:].strip():
        raise NotYaml(
            f"{shown(text)}: YAML takes {shown(text[end:].strip())} for a comment; put quotes around the value"
        )
    return None if node is None else _value(node)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; None if it is empty.  Raises NotYaml, or OSError if it cannot be read."""
    with path.open("rb") as file:
        content = file.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise NotYaml(f"longer than {_LONGEST:,} bytes, which no config is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotYaml(f"no UTF-8 text (byte {error.start})") from error
    node = _compose(text)
    return None if node is None else _value(node)


def assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """The fields in words `KEY=VALUE`; a later word replaces an earlier one.  Raises NotYaml for any other word."""
    fields: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise NotYaml(f"{shown(pair)}: expected KEY=VALUE, such as scaling=delayed or max_steps=100")
        try:
            fields[key] = parse_value(text)
        except NotYaml as error:
            raise NotYaml(f"{cut(key)}: {error}") from error
    return fields


def to_yaml(fields: Mapping[str, Any]) -> str:
    """YAML lines that both `read_yaml` and readers of YAML 1.1 read as these fields."""
    return "".join(f"{_written(key)}: {_written(value)}\n" for key, value in fields.items())


def _written(value: Any) -> str:
    """A value as JSON, of which YAML 1.2 is a superset; simple words lose their quotes."""
    if isinstance(value, str):
        bare = _PLAIN.fullmatch(value) and _plain(value) == value and value.lower() not in _OTHERWISE_FALSE_OR_TRUE
        return value if bare else json.dumps(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_written(str(key))}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    if isinstance(value, float) and not abs(value) < float("inf"):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    if isinstance(value, float) and "." not in repr(value):
        return repr(value).replace("e", ".0e")  # 1.0e-08: YAML 1.1 takes 1e-08 for a string
    return json.dumps(value)


class _Loader(yaml.BaseLoader):
    """PyYAML's parser without its conversion of scalars, with aliases refused and the depth limited."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; put quotes around it", problem_mark=mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_DEEPEST} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str) -> Any:
    if len(text) > _LONGEST:
        raise NotYaml(f"longer than {_LONGEST:,} characters")
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise NotYaml(f"{where}{cut(error.problem or error.context or 'not YAML', 200)}") from error
    except yaml.YAMLError as error:
        raise NotYaml(cut(str(error), 200)) from error


def _value(node: Any) -> Any:
    where = f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
    if node.tag != _TAGS[type(node)]:
        raise NotYaml(f"{where}: tags such as {cut(node.tag)} are not read; leave it out")
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        fields: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NotYaml(f"{where}: a key must be a word")
            if key.value in fields:
                raise NotYaml(f"line {key.start_mark.line + 1}: {cut(key.value)} is given twice; give it once")
            fields[key.value] = _value(value)
        return fields
    if node.style is not None:  # quoted, or a block
        return node.value
    try:
        return _plain(node.value)
    except ValueError as error:
        raise NotYaml(f"{where}: {error}") from error


def _plain(text: str) -> Any:
    """The value of an unquoted scalar in the core schema."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    for radix, pattern in _INTEGER.items():
        if pattern.fullmatch(text):
            if len(text) > _MOST_DIGITS:
                raise ValueError(f"a number of {len(text)} digits")
            return int(text, radix) if radix == 10 else int(text[2:], radix)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return float("nan") if _NAN.fullmatch(text) else text
