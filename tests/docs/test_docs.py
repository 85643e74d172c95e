"""The documentation: what it takes from the code is current, its programs run, every public name is explained."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from altgrad.collapse import held_out_rules, loss_rules, rule, smoothing
from altgrad.commands.reports import MARGIN_HELP
from altgrad.compare.parity import verdict
from altgrad.compare.parity.student_t import CONFIDENCE
from altgrad.config.train_config import TrainConfig
from altgrad.corpus.unigram import SAMPLE
from altgrad.events import EVENTS
from altgrad.formats import FORMATS
from altgrad.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PACKAGES = ("altgrad", "tune", "dashboard")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_takes_from_the_code_is_current(page: Path) -> None:
    written = runpy.run_path(str(DOCS / "generate.py"))["written"]
    assert written(page.read_text()) == page.read_text(), "run `python docs/generate.py`"


def test_every_table_of_the_code_stands_on_one_page_and_is_written_anew_wherever_it_is_missing() -> None:
    generator = runpy.run_path(str(DOCS / "generate.py"))
    marks: list[str] = []
    for page in PAGES:
        text = page.read_text()
        marks += re.findall(r"<!-- ((?:end of )?[a-z ]+) -->", text)
        emptied = re.sub(r"(?<=<!-- )([a-z ]+) -->.*?<!-- (?=end of \1 )", r"\1 -->\n<!-- ", text, flags=re.DOTALL)
        assert generator["written"](emptied) == text, page
    names = list(generator["BLOCKS"])
    assert sorted(marks) == sorted([*names, *(f"end of {name}" for name in names)])


@pytest.mark.parametrize(
    ("page", "names"), [("config.md", TrainConfig.model_fields), ("method.md", {**METRICS, **EVENTS})]
)
def test_every_field_metric_and_event_has_its_row(page: str, names: dict[str, object]) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / page).read_text(), re.MULTILINE)
    assert [name for name in names if name not in rows] == []


def test_every_format_has_its_row_or_is_another_name_of_one() -> None:
    page = (DOCS / "formats.md").read_text()
    assert {fmt.name for fmt in FORMATS.values()} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_figures_in_the_prose_of_the_method_are_those_of_the_code() -> None:
    prose = " ".join((DOCS / "method.md").read_text().split())
    for sentence in (
        f"half-life of {smoothing.HALF_LIFE} ticks",
        f"at most {smoothing.REACH:g} nats above the average",
        f"a run of up to {smoothing.USUAL_STEPS} steps",
        f"more than {loss_rules.MOSTLY:.0%} of the recent steps".replace("%", " %"),
        f"losing {rule.RECOVERY:.0%} of the height".replace("%", " %"),
        f"at least {held_out_rules.LEARNING_STEPS} steps of full learning rate",
        f"in the last {held_out_rules.STILL_FALLING} steps",
        f"at most 2^{SAMPLE.bit_length() - 1} training tokens",
        f"{CONFIDENCE:.0%} Student t intervals".replace("%", " %"),
    ):
        assert sentence in prose, sentence
    assert held_out_rules.TRAINED_START == 0.5 and "starts below half of it" in prose
    assert verdict.ENOUGH_SEEDS == 3 and "below three seeds no claim" in prose
    margins = f"{verdict.MARGIN:g} nats, or {verdict.RELATIVE_MARGIN:.1%} of".replace("%", " %")
    assert margins in prose and margins in MARGIN_HELP.replace("%%", "%")


def _programs(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


COMPLETE = [program for program in _programs(DOCS / "own_model.md") if program.startswith("import ")]
NAMES = ["plain", "accumulation", "compile", "trainer", "kinds"]
CASES = zip(NAMES, COMPLETE, strict=True)
SLOW = {"compile": [pytest.mark.slow, pytest.mark.compiled]}  # a minute on two busy cores, with nothing in the cache


@pytest.mark.parametrize("program", [pytest.param(code, id=name, marks=SLOW.get(name, ())) for name, code in CASES])
def test_the_programs_for_a_model_of_ones_own_run_as_they_stand(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        exec(compile(program, "own_model.md", "exec"), {"__name__": "own_model"})


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(node: ast.Module | ast.ClassDef) -> list[Definition]:
    """The public functions and classes, or methods, defined right in it."""
    return [part for part in node.body if isinstance(part, Definition) and not part.name.startswith("_")]


def _explained_by_a_base(source: Path, kind: str, method: str) -> bool:
    """Whether a class inherits the explanation of a method that it replaces."""
    module = importlib.import_module(".".join(source.relative_to(ROOT).with_suffix("").parts))
    return any(getattr(base, method, None).__doc__ for base in getattr(module, kind).__mro__[1:])


def _undocumented(source: Path) -> list[str]:
    """Public modules, classes, functions and methods of a file that say nothing about themselves."""
    tree = ast.parse(source.read_text())
    place = source.relative_to(ROOT)
    missing = [] if ast.get_docstring(tree) else [str(place)]
    for node in _definitions(tree):
        if not ast.get_docstring(node):
            missing.append(f"{place}:{node.lineno} {node.name}")
        for method in _definitions(node) if isinstance(node, ast.ClassDef) else ():
            if not ast.get_docstring(method) and not _explained_by_a_base(source, node.name, method.name):
                missing.append(f"{place}:{method.lineno} {node.name}.{method.name}")
    return missing


def test_every_public_name_is_explained() -> None:
    assert [name for source in SOURCES for name in _undocumented(source)] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((tmp_path / page.relative_to(DOCS).with_suffix("")).exists() or page.stem == "index" for page in PAGES)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    cells = re.findall(r"^\| [^|]*\| ([^|]*) \|", (DOCS / "dependencies.md").read_text(), re.MULTILINE)
    said = {re.split(r"[\[ ]", name)[0] for cell in cells for name in re.split(r", (?![a-z]+\])", cell)}
    names = {re.split(r"[\[<>= ]", name)[0] for name in required} - {"altgrad"}
    assert names - said == set()


def test_links_of_the_readme_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", readme, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (ROOT / target.split("#")[0]).exists(), target
