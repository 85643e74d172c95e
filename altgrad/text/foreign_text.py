"""Foreign text on its way into something that is interpreted: markdown, HTML, a chart's labels, a shell.

Run names, error texts, config values, layer names and stored reports come from whoever made a results folder.  They are
shown as they are written and never act: no markup, no link, no picture that a browser would fetch from elsewhere, no
word that a shell would run.  Each target has one function here; nothing else in the project escapes text for it.
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
_BLOCK = re.compile(r"^(\d*)([#+=.)-])(?=[#\s=-]|$)")  # a heading, a list or a rule, at the start of a line
_NOTHING = "\u200b"  # of no width: breaks `:name:`, which some viewers show as an icon
_LINE_BREAKS = re.compile(r"[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")
_NOT_IN_A_FILE_NAME = re.compile(r"[^\w.+=@,-]+")


def as_markdown(text: str) -> str:
    """Text within a line of markdown: `![x](http://y)` is shown so, `_` within a word stays as it is written.

    A viewer that makes links of bare addresses makes one of what is shown, not of the backslashes behind it.
    """
    one_line = _LINE_BREAKS.sub(" ", text).strip()
    escaped = _SPECIAL.sub(lambda match: "\\" + match[0] if match[0] else _NOTHING, one_line)
    return _BLOCK.sub(r"\1\\\2", escaped)


def as_code(text: str) -> str:
    """Text as a markdown code span, whatever backticks it has."""
    one_line = _LINE_BREAKS.sub(" ", text)
    fence = "`" * (max((len(run) for run in re.findall("`+", one_line)), default=0) + 1)
    padding = " " if one_line.startswith("`") or one_line.endswith("`") or not one_line.strip() else ""
    return f"{fence}{padding}{one_line or ' '}{padding}{fence}"


def as_code_block(text: str, language: str = "") -> str:
    """Lines as a markdown code block, whatever backticks they have."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def without_pictures(document: str) -> str:
    """A markdown document of which a viewer loads nothing: pictures and links become the text that makes them.

    A picture of any kind needs `![`, an inline link `](`, a reference `][` or `]:`; afterwards none of these is left.
    """
    return re.sub(r"\](?=[(\[:])", r"\\]", document.replace("![", "!\\["))


def as_html(text: str, *, quote: bool = False) -> str:
    """Text within HTML; with `quote` also within an attribute's quotes."""
    return html.escape(text, quote=quote)


def as_label(text: str) -> str:
    """Text within a Plotly label, which knows some HTML: `<a href=...>` would be a link."""
    return html.escape(text, quote=False)


def as_file_name(text: str) -> str:
    """A file's name made of the text: no folder, no hidden file, no option."""
    return _NOT_IN_A_FILE_NAME.sub("_", text).lstrip(".-") or "run"


def as_command(words: Iterable[str]) -> str:
    """A shell command of these words, each of which the shell takes as it is."""
    return shlex.join(words)


def as_here_document(text: str, file: str) -> str:
    """Shell lines that write the text into a file; the line that ends it does not occur in the text."""
    lines, end = text.rstrip("\n").split("\n"), "END"
    while end in lines:
        end += "_"
    return "\n".join([f"cat > {shlex.quote(file)} <<'{end}'", *lines, end])
