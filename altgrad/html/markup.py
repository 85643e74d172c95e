"""Building blocks of a page: every string that is not `Html` is escaped, so that no run name can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from altgrad.text.foreign_text import as_html

_VOID = frozenset({"img", "input"})  # elements that have no content and no end tag
Attribute = str | int | float | None


class Html(str):
    """A string that already is HTML and is not escaped again."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: Attribute) -> Html:
    """`<name ...>content</name>`.

    Strings that are not `Html` are escaped.  Attributes that are None are left out; `class_` is `class`, other
    underscores are hyphens.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{as_html(_text(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{said}>" if name in _VOID else f"<{name}{said}>{join(content)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """The concatenation of the parts; those that are not `Html` are escaped."""
    return Html(between.join(part if isinstance(part, Html) else as_html(part) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, align: str = "") -> Html:
    """A table in a box that scrolls sideways.  The first cell of a row is its heading, `label` the table's caption.

    Cells are text or `Html`.  `align` has one of `l`, `r` per column (default: all left).
    """
    align = align or "l" * len(head)
    classes = ["number" if side == "r" else None for side in align]
    heads = join(element("th", cell, scope="col", class_=kind) for cell, kind in zip(head, classes, strict=True))
    body = join((_row(row, classes) for row in rows), "\n")
    content = [element("caption", label), element("thead", element("tr", heads)), element("tbody", body)]
    return scrolling(element("table", *content), label)


def scrolling(content: Html, label: str) -> Html:
    """A scrolling box for content wider than the page; it takes the keyboard focus, to be scrolled without a mouse."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def _row(cells: Sequence[str], classes: Sequence[str | None]) -> Html:
    first = element("th", cells[0], scope="row", class_=classes[0])
    others = (element("td", cell, class_=kind) for cell, kind in zip(cells[1:], classes[1:], strict=True))
    return element("tr", first, *others)


def _text(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
