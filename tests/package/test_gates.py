"""One set of gates: what runs before a commit, in `make check` and in the workflow; and one version everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import altgrad

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def recipe_of(target: str) -> list[str]:
    """The commands of a target of the Makefile, with the folder of the environment's programs written out."""
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert lines is not None, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in lines[1].splitlines()]


def test_a_commit_passes_the_gates_of_make_check() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    gates = [command.removesuffix(" .") for command in recipe_of("check")]  # pre-commit appends the files
    assert [hook["entry"] for hook in repository["hooks"]] == gates


def test_the_workflow_runs_the_suite_on_every_python_and_the_slow_half_nightly() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    jobs = workflow["jobs"]
    pythons = jobs["suite"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"] and PROJECT["requires-python"] == f">={pythons[0]}"
    assert [step["run"] for step in jobs["suite"]["steps"] if "make" in step.get("run", "")] == [
        "make test PYTHON=python"
    ]
    assert "-m slow" in jobs["slow"]["steps"][-1]["run"] and "cron" in workflow[True]["schedule"][0]  # YAML 1.1: on


def test_citation_changelog_and_package_name_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and citation["version"] == newest[1] == altgrad.__version__
    assert citation["license"] == PROJECT["license"] and (ROOT / PROJECT["license-files"][0]).exists()


def test_what_may_break_altgrad_by_a_new_version_has_an_upper_bound() -> None:
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *(name for extra in extras.values() for name in extra)]
    for name in ("torch", "ray"):  # of which private parts are used
        (bound,) = {one for one in needed if re.match(rf"{name}\b", one)}
        assert re.search(r">=\d+\.\d+,<\d+\.\d+$", bound), bound
