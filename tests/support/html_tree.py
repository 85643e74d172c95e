"""A page as a tree, through the standard library's parser: what a reader of it would find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})


@dataclass
class Node:
    """An element: tag, attributes, and children that are elements or text."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str | None = None, **attributes: str) -> Iterator[Node]:
        """Elements below this one by tag and attributes; `class_` asks for one of the classes."""
        kind = attributes.pop("class_", None)
        for child in self.children:
            if isinstance(child, Node):
                fits = tag in (None, child.tag) and attributes.items() <= child.attributes.items()
                if fits and (kind is None or kind in child.attributes.get("class", "").split()):
                    yield child
                yield from child.all(tag, **attributes, **({} if kind is None else {"class_": kind}))

    def one(self, tag: str | None = None, **attributes: str) -> Node:
        """The first such element."""
        return next(self.all(tag, **attributes))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Node:
    """The page's tree.  Fails where an element is not closed in its place."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.open) == 1, f"never closed: {[node.tag for node in reader.open[1:]]}"
    return reader.open[0]
