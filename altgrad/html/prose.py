"""Markdown of a report as HTML that asks nothing of the outside: no raw HTML, no links, no pictures."""

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
    """A document as HTML whose top heading is `<h{level}>`; what is no plain markdown is shown as it is written.

    `plot` takes the place of the document's plot in characters, whose columns need a font that has them all; a
    document without one has it in front.
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
    """One paragraph's content, without the paragraph."""
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
