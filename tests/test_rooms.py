"""No folder is so full, and no file so long, that a reader loses the thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("altgrad", "bench", "configs", "dashboard", "docs", "tests", "tune")
FILES, LINES = 12, 350
# One file is one thing of a list that grows by itself: nobody reads the folder from its first file to its last.
LISTS = {
    "altgrad/config/recipes",  # one published recipe each, found by its name
    "configs",  # one config each, and `make sweep` runs them all
}


def files(root: Path) -> Iterator[Path]:
    """The files of the rooms, relative to the root, without what a program has left there."""
    for room in ROOMS:
        for file in sorted((root / room).rglob("*")):
            place = file.relative_to(root)
            if file.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in place.parts):
                yield place


def overfull(root: Path) -> list[str]:
    """Folders with more files than a dozen, `__init__.py` not counted."""
    number = Counter(file.parent.as_posix() for file in files(root) if file.name != "__init__.py")
    return [f"{folder}: {n} files" for folder, n in number.items() if n > FILES and folder not in LISTS]


def too_long(root: Path) -> list[str]:
    """Python files with more lines than 350."""
    lines = {file: len((root / file).read_text().splitlines()) for file in files(root) if file.suffix == ".py"}
    return [f"{file}: {n} lines" for file, n in lines.items() if n > LINES]


def test_no_folder_has_more_than_a_dozen_files() -> None:
    assert overfull(ROOT) == []


def test_no_python_file_has_more_than_350_lines() -> None:
    assert too_long(ROOT) == []


@pytest.mark.parametrize(("number", "lines", "found"), [(12, 350, (0, 0)), (13, 351, (1, 13))])
def test_what_is_too_much_is_found(tmp_path: Path, number: int, lines: int, found: tuple[int, int]) -> None:
    folder = tmp_path / "tune" / "plan"
    (folder / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "__pycache__/a.pyc", *(f"file_{n}.py" for n in range(number))):
        (folder / name).write_text("" if name.startswith("_") else "pass\n" * lines)
    assert (len(overfull(tmp_path)), len(too_long(tmp_path))) == found


def test_every_room_stands_in_the_tree_of_the_architecture() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    for house in ("altgrad", "dashboard", "tune"):
        rooms = [file.parent.name for file in (ROOT / house).glob("*/__init__.py")]
        assert rooms and [room for room in rooms if f"{room}/" not in tree] == []
