"""One word, one thing: no two packages give one name to different classes."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_no_two_modules_define_a_class_or_type_of_one_name() -> None:
    """Of what others can import; `__init__` files, which only hand names on, define none.  A constant is no type."""
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("altgrad", "tune", "dashboard"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(file.read_text()).body:
                named: list[str] = []
                if isinstance(node, ast.ClassDef):
                    named = [node.name]
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    named = [node.targets[0].id]
                for name in named:
                    if name[0].isupper() and (isinstance(node, ast.ClassDef) or not name.isupper()):
                        places[name].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
