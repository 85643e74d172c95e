"""Conversion of a report from markdown to HTML without raw HTML, links and pictures: the result loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from altgrad.html.markup import Html

_REACHING_OUT = ["html_block", "html_inline", "link", "image", "autolink", "reference"]


def prose(markdown: str, level: int, plot: Html | None = None) -> Html:
    """A document as HTML with the top heading `<h{level}>`; raw HTML, links and pictures are shown as their source.

    `plot` replaces the document's plot in braille characters, which not every font has; in a document without such a
    plot it comes first.
    """
    tokens = _parser().parse(markdown)
    if plot is not None:
        place = next((at for at, token in enumerate(tokens) if token.type == "fence" and token.info == "text"), None)
        drawn = Token("html_block", "", 0, content=plot)
        tokens[place or 0 : 0 if place is None else place + 1] = [drawn]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + level - 1, 6)}"
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    return Html(_parser().renderer.render(tokens, _parser().options, {}))


def sentence(markdown: str) -> Html:
    """The content of one paragraph as HTML, without the `<p>` element."""
    return Html(_parser().renderInline(markdown))


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(_REACHING_OUT)
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", _close_table)
    return parser


def _open_table(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return '<div class="scroll" tabindex="0" role="region" aria-label="Table of the report"><table>\n'


def _close_table(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    return "</table></div>\n"
