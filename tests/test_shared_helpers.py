"""What several tests need lies in `tests/support/` or `tests/servers/`, once; and marks say what a test starts."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = sorted(TESTS.rglob("*.py"))
WORTH_SHARING = 350  # characters of a syntax tree: `ROOT = Path(__file__).parents[2]` has fewer, a config has more
STARTS_RAY = re.compile(r'ROOT / "tune" / "sweep[.]py"|with local_ray[(]|[.]altgrad[(]"sweep"')


def named(path: Path) -> str:
    return ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)


def imported(tree: ast.Module) -> set[str]:
    """The modules that are imported anywhere, also within functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def definitions(tree: ast.Module) -> dict[str, str]:
    """The helpers of a module as syntax trees, without what they are called: functions, classes and large constants."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_"):
            found[node.name] = ast.dump(node.args) + "".join(map(ast.dump, node.body))
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "".join(map(ast.dump, node.body))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            found[ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)] = ast.dump(node.value)
    return {name: text for name, text in found.items() if len(text) > WORTH_SHARING and name != "pytestmark"}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_module_imports_a_test_module(path: Path) -> None:
    tests = {named(other) for other in MODULES if other.name.startswith("test_")}
    assert not imported(ast.parse(path.read_text())) & tests


def test_no_two_modules_define_the_same_helper() -> None:
    owners = defaultdict(list)
    for path in MODULES:
        for name, text in definitions(ast.parse(path.read_text())).items():
            owners[text].append(f"{named(path)}.{name}")
    assert not [where for where in owners.values() if len(where) > 1]


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_test_module_that_starts_ray_says_so(path: Path) -> None:
    source = path.read_text()
    if path.name.startswith("test_") and STARTS_RAY.search(source):
        assert "mark.ray" in source
