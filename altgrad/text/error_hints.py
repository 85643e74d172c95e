"""How an error message shows a wrong value: the value, cut to fit a line, and the known name nearest to it."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST = 80  # characters of a value in an error
_BEGINNING = 20  # characters of a long path before its gap

_CREDENTIALS = re.compile(r"://[^/@]*@")  # user and password in a URI
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, LONGEST, LONGEST
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 4


def shown(value: Any) -> str:
    """The repr of a value in at most 80 characters; credentials in a URI become ***."""
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST:  # decimal digits of such a number may take minutes
        return f"{'-' if value < 0 else ''}a number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = _CREDENTIALS.sub("://***@", value)
    return cut(repr(value) if isinstance(value, str) and len(value) < LONGEST else _REPR.repr(value))


def kind(value: Any) -> str:
    """The type of a value with its article: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def cut(text: str, longest: int = LONGEST) -> str:
    """The text on one line of at most `longest` characters; an ellipsis marks what was cut off."""
    line = " ".join(text[: 20 * longest].split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def shown_path(path: object) -> str:
    """A path in at most 80 characters: of a longer one the beginning and the end, which has the file's name."""
    line = " ".join(_CREDENTIALS.sub("://***@", str(path)).split())
    return line if len(line) <= LONGEST else f"{line[:_BEGINNING]}…{line[_BEGINNING + 1 - LONGEST :]}"


def error_text(error: Exception) -> str:
    """An error's message as a command prints it: each of its lines is cut to at most 480 characters.

    An error of the system, which begins with its number, becomes `PATH: No such file or directory`.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{shown_path(error.filename)}: {error.strerror}"
    return "\n".join(cut(line, 6 * LONGEST) for line in str(error).splitlines())


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'nearest'?` if a known name is similar to `name`, else the empty string."""
    near = difflib.get_close_matches(str(name)[:LONGEST], list(known), n=1)
    if not near:  # names differ in case more often than difflib forgives: e4m3 for E4M3
        near = [word for word in known if word.lower() == str(name)[:LONGEST].lower()]
    return f"; did you mean {near[0]!r}?" if near else ""
