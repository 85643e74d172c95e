"""Escaping of foreign text for everything that interprets text: markdown, HTML, chart labels, a shell.

Run names, error texts, config values, layer names and stored reports come from whoever wrote a results folder.  They
are displayed literally: none of them may become markup, a link, a picture that a browser fetches from elsewhere, or a
word that a shell runs.  Each target has one function here; nothing else in the project escapes text for it.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable

_SPECIAL = re.compile(
    r"[\\`*\[\]<>&$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
    r"|:(?=[A-Za-z])|(?<=http):(?=//)|(?<=https):(?=//)|(?<=www)\."  # `:red[x]`, addresses
    r"|(?<=:)(?=[a-z0-9/+_-]+:)"  # `:smile:`
)
_BLOCK = re.compile(r"^(\d*)([#+=.)-])(?=[#\s=-]|$)")  # would start a heading, a list or a horizontal rule
_NOTHING = "\u200b"  # zero-width space: breaks `:name:`, which some viewers show as an icon
_LINE_BREAKS = re.compile(r"[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")
_NOT_IN_A_FILE_NAME = re.compile(r"[^\w.+=@,-]+")


def as_markdown(text: str) -> str:
    """Text as part of one line of markdown: `![x](http://y)` is displayed literally, `_` within a word is not escaped.

    A viewer that turns bare addresses into links does so with the displayed text, without the backslashes.
    """
    one_line = _LINE_BREAKS.sub(" ", text).strip()
    escaped = _SPECIAL.sub(lambda match: "\\" + match[0] if match[0] else _NOTHING, one_line)
    return _BLOCK.sub(r"\1\\\2", escaped)


def as_code(text: str) -> str:
    """Text as a markdown code span; the fence is longer than any run of backticks in the text."""
    one_line = _LINE_BREAKS.sub(" ", text)
    fence = "`" * (max((len(run) for run in re.findall("`+", one_line)), default=0) + 1)
    padding = " " if one_line.startswith("`") or one_line.endswith("`") or not one_line.strip() else ""
    return f"{fence}{padding}{one_line or ' '}{padding}{fence}"


def as_code_block(text: str, language: str = "") -> str:
    """Lines as a markdown code block; the fence is longer than any run of backticks in them."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def without_pictures(document: str) -> str:
    """A markdown document from which a viewer loads nothing: pictures and links are displayed as their source text.

    Every picture needs `![`, every inline link `](`, every reference `][` or `]:`; the result contains none of these.
    """
    return re.sub(r"\](?=[(\[:])", r"\\]", document.replace("![", "!\\["))


def as_html(text: str, *, quote: bool = False) -> str:
    """Text escaped for HTML; with `quote` also for the inside of a quoted attribute."""
    return html.escape(text, quote=quote)


def as_label(text: str) -> str:
    """Text escaped for a Plotly label: Plotly interprets some HTML, and `<a href=...>` would become a link."""
    return html.escape(text, quote=False)


def as_file_name(text: str) -> str:
    """A file name made from the text: without folders, not hidden, and not mistaken for an option of a command."""
    return _NOT_IN_A_FILE_NAME.sub("_", text).lstrip(".-") or "run"


def as_command(words: Iterable[str]) -> str:
    """A shell command in which each word is quoted, so that the shell changes none of them."""
    return shlex.join(words)


def as_here_document(text: str, file: str) -> str:
    """Shell lines that write the text into a file; the line that ends the here-document does not occur in the text."""
    lines, end = text.rstrip("\n").split("\n"), "END"
    while end in lines:
        end += "_"
    return "\n".join([f"cat > {shlex.quote(file)} <<'{end}'", *lines, end])
