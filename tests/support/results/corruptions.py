"""Every way in which a JSON record goes wrong: cut off, overwritten, hand-edited, of another program or version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_WRONG: tuple[Any, ...] = (None, True, "word", -1, 1.5, 10**400, [], [1], {}, {"a": 1}, "a\0b", "x" * 5000)


def corruptions(content: bytes) -> Iterator[tuple[str, bytes]]:
    """(what was done, the file's content) for a sound record's content."""
    for eighth in range(8):
        yield f"cut at {eighth}/8", content[: len(content) * eighth // 8]
    yield "one newline", b"\n"
    yield "null", b"null"
    yield "a list", b"[" + content + b"]"
    yield "a string", b'"' + b"x" * 1000 + b'"'
    yield "foreign", b'{"name": "something", "version": "1.0.0", "scripts": {}}'
    yield "NUL bytes", b"\0" * len(content)
    yield "NUL in the middle", content[: len(content) // 2] + b"\0" + content[len(content) // 2 + 1 :]
    yield "not UTF-8", content.replace(b'"', b'"\xff\xfe', 3)
    yield "UTF-16", content.decode().encode("utf-16")
    yield "byte order mark", b"\xef\xbb\xbf" + content
    yield "nested lists", b'{"schema": 1, "config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "nested objects", b'{"a": ' * 900 + b"1" + b"}" * 900
    yield "many digits", content.replace(b"1", b"1" * 5000, 1)
    whole = json.loads(content)
    for path, value in _fields(whole):
        yield f"{path} missing", _with(whole, path, None, remove=True)
        for wrong in _WRONG:
            if type(wrong) is not type(value) or wrong in ("", 10**400):
                yield f"{path}={str(wrong)[:20]!r}", _with(whole, path, wrong)
        for word in (b"NaN", b"-Infinity", b"1e999"):
            yield f"{path}={word.decode()}", _with(whole, path, "\x01").replace(b'"\\u0001"', word)
    yield "another schema", _with(whole, ("schema",), 99)


def _fields(content: Mapping[str, Any], above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each field of a record, those of its inner objects and of the first object of a list."""
    for name, value in content.items():
        yield (*above, name), value
        if isinstance(value, dict):
            yield from _fields(value, (*above, name))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield (*above, name, 0), value[0]
            yield from _fields(value[0], (*above, name, 0))


def _with(content: Mapping[str, Any], path: tuple[Any, ...], value: Any, *, remove: bool = False) -> bytes:
    changed = json.loads(json.dumps(content))
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(changed).encode()
