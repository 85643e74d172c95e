"""What a docstring, a comment or a page names of our own tree is there, also after a module has moved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from altgrad.config.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
HOUSES = ("altgrad", "tune", "dashboard", "bench")
SOURCES = {file: file.read_text() for house in HOUSES for file in (ROOT / house).rglob("*.py")}
# Of the changelog, which tells of names that were, nothing is asked.
PAGES = {
    file: file.read_text() for file in (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
}
# `kernel.ranks`, `config.phases.first_steps`: lower case up to the last name, which may be a class.
DOTTED = re.compile(r"`((?:[a-z_]\w*\.)+[A-Za-z_]\w*)(?:\(\))?`")
FILE = re.compile(r"\.(py|md|html|json|log|yaml|bin|pt|npz|safetensors)$")
PATH = re.compile(rf"(?<![\w/.-])((?:{'|'.join((*HOUSES, 'docs', 'tests', 'configs'))})/[\w./-]*\w)")
BUILT = ("altgrad/_apps", "altgrad/_apps/configs")  # in a wheel alone, see pyproject.toml


def modules() -> dict[str, str]:
    """Dotted name -> text of each module, and of each package, which also holds the modules in its folder."""
    found = {}
    for file, text in SOURCES.items():
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts, text = parts[:-1], "\n".join([text, *(f"import {inner.stem}" for inner in file.parent.iterdir())])
        found[".".join(parts)] = text
    return found


MODULES = modules()
PACKAGES = {part for name in MODULES for part in name.split(".")}


def holds(text: str, name: str) -> bool:
    """Whether a module defines, imports or assigns a name."""
    return (
        re.search(rf"\b(def|class|import|as) {name}\b|^\s+{name},$|, {name}\b|\b{name} ?[:=]", text, re.M) is not None
    )


def is_there(dotted: str) -> bool:
    """Whether `a.b.c` ends the name of a module, or names what the module with the longest such name holds."""
    parts = dotted.split(".")
    if parts[0] not in PACKAGES or (parts[0] == "config" and parts[1] in TrainConfig.model_fields):
        return True  # of somebody else, such as torch, or of an object in the code
    for end in range(len(parts), 0, -1):
        near = [text for name, text in MODULES.items() if f".{name}".endswith("." + ".".join(parts[:end]))]
        if near:
            return end == len(parts) or any(holds(text, parts[end]) for text in near)
    return True


def lost(text: str) -> Iterator[str]:
    """The dotted names and the paths in a text that lead nowhere."""
    yield from (found for found in DOTTED.findall(text) if not FILE.search(found) and not is_there(found))
    yield from (path for path in PATH.findall(text) if not (ROOT / path).exists() and path not in BUILT)


@pytest.mark.parametrize("texts", [SOURCES, PAGES], ids=["code", "pages"])
def test_what_is_named_of_the_tree_is_there(texts: Mapping[Path, str]) -> None:
    assert [(str(file.relative_to(ROOT)), name) for file, text in texts.items() for name in lost(text)] == []


@pytest.mark.parametrize("text", ["see `kernel.expansion`", "as `html.marks` has", "in altgrad/results/marks.py"])
def test_an_old_place_is_found(text: str) -> None:
    assert len(list(lost(text))) == 1


@pytest.mark.parametrize("text", ["see `kernel.ranks`", "`branch.checkpoints.kept`", "`torch.func`", "bench/NOTES.md"])
def test_what_is_there_is_not(text: str) -> None:
    assert list(lost(text)) == []
