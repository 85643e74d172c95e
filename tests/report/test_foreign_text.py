"""Foreign text never acts: not as markdown (by another parser), not in a shell (by bash itself), not as a file name."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from altgrad.text.foreign_text import (
    as_code,
    as_code_block,
    as_command,
    as_file_name,
    as_here_document,
    as_label,
    as_markdown,
    without_pictures,
)
from altgrad.text.number_text import table

HOSTILE = [
    "![i](http://evil.test/a.png)", "![i][r]\n\n[r]: http://evil.test/b.png", "[click](http://evil.test)",
    "<img src=http://evil.test/c.png>", "<http://evil.test>", "`code` ``more`` ```", "**bold** _em_ ~~gone~~",
    "# head", "- item", "1. item", "> quote", "a\n\n---\n\nb", "a|b|c", "&lt;img&gt;", "\\![x](http://evil.test)",
    "$\\href{http://evil.test}{x}$", "x' ; touch hacked ; '", "$(touch hacked) `touch hacked`", "END\ntouch y\nEND",
    "../../etc/passwd", "-rf", "~/.bashrc", " ", "`", "``", "===", "+ x", "e7m0_stored+clip-s42",
]  # fmt: skip
ALPHABET = "![]()<>`*_#-+.1 \n|\\&~$:'\"/abEND"


def random_texts() -> list[str]:
    rng = random.Random(7)
    return ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 24))) for _ in range(2_000)]


def parsed(markdown: str) -> tuple[set[str], str]:
    """Kinds of tokens besides paragraphs and text, and the text, as a full CommonMark parser with tables reads them."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(markdown)
    kinds, text = set(), ""
    for token in tokens:
        for one in token.children or [token]:
            kinds.add(one.type)
            text += one.content if one.type in ("text", "code_inline", "text_special") else ""
    return kinds - {"paragraph_open", "paragraph_close", "text", "text_special"}, text


@pytest.mark.parametrize("text", [*HOSTILE, *random_texts()[:200]])
def test_text_in_markdown_is_text(text: str) -> None:
    kinds, shown = parsed(as_markdown(text))
    assert not kinds, as_markdown(text)
    assert shown.replace("\u200b", "").split() == " ".join(text.split()).split()


def test_random_text_in_markdown_is_text_too_also_behind_our_own_words() -> None:
    for text in random_texts():
        for before in ("", "Gap: ", "**"):
            kinds, _ = parsed(f"{before}{as_markdown(text)}")
            assert not kinds, (before, text)


def test_a_code_span_and_a_code_block_hold_whatever_they_are_given() -> None:
    for text in [*HOSTILE, *random_texts()]:
        kinds, shown = parsed(f"x {as_code(text)} y")
        assert kinds <= {"code_inline"} and "".join(text.split()) in "".join(shown.split()), text
        tokens = MarkdownIt("commonmark").parse(as_code_block(text))
        assert [token.type for token in tokens] == ["fence"], text


def test_a_table_cell_keeps_its_row() -> None:
    for text in [*HOSTILE, *random_texts()[:500]]:
        parser = MarkdownIt("commonmark").enable("table")
        tokens = parser.parse(table(["a", "b"], [[as_markdown(text), "end"], [as_code(text), "end"]]))
        assert [token.type for token in tokens].count("td_open") == 4, text


def test_nothing_of_a_document_is_fetched_or_links_elsewhere() -> None:
    for text in [*HOSTILE, *random_texts()]:
        parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        found = {one.type for token in parser.parse(without_pictures(text)) for one in token.children or []}
        assert "image" not in found, text
        assert "link_open" not in found or "<http" in text, text


def test_a_report_without_pictures_reads_as_before() -> None:
    report = "# r\n\n| a | b |\n|---|---|\n| `x` | +0.1 [+0.0, +0.2] |\n\n```text\nplot\n```\n"
    assert MarkdownIt().enable("table").render(without_pictures(report)) == MarkdownIt().enable("table").render(report)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_shell_runs_nothing_of_the_text(tmp_path: Path, text: str) -> None:
    name = as_file_name(text)
    assert "/" not in name and not name.startswith(("-", ".")) and name
    script = as_here_document(f"data: {text}\n{text}\n", f"{name}.yaml") + "\n" + as_command(["printf", "%s", text])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == text and not done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.yaml"]
    assert (tmp_path / f"{name}.yaml").read_text() == f"data: {text}\n{text}".rstrip("\n") + "\n"


def test_a_label_of_a_chart_has_no_markup() -> None:
    assert not re.search("<", as_label("<a href='http://evil.test'>x</a>"))
