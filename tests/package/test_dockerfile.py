"""The image's file: hadolint's rules, and what it copies, installs and starts is there and works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).with_name("hadolint")


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)
    return found


@pytest.mark.skipif(not HADOLINT.exists(), reason="no hadolint")
def test_hadolint_finds_nothing():
    done = subprocess.run(
        [HADOLINT, "--failure-threshold", "style", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_installs_the_pinned_packages_with_extras_that_exist():
    (installed,) = re.findall(r"^RUN python -m pip install (.*)$", DOCKERFILE, re.MULTILINE)
    assert "--constraint constraints.txt" in installed
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.search(r'"\.\[(.*)\]"', installed).group(1).split(",")
    assert set(asked) <= known.keys()
    python = re.search(r"^FROM python:(\d+)\.(\d+)-slim$", DOCKERFILE, re.MULTILINE).groups()
    assert (3, 11) <= tuple(map(int, python)) <= (3, 13)


def test_what_it_leaves_out_is_no_part_of_the_tree(tmp_path):
    """The steps in a clean folder: a copy without the ignored files plans the sweep that the image starts."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.split():
        above = [name, *map(str, Path(name).parents)]
        assert not any(fnmatch(part, pattern.removeprefix("**/")) for part in above for pattern in patterns), name
    for folder in ("altgrad", "tune", "configs", "dashboard"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    entry, command = (json.loads(instruction(name)) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["altgrad"]
    words = [str(tmp_path / "results") if word == "/results" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "altgrad", *words, "--dry-run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "bf16_baseline" in done.stdout


def test_results_lie_on_the_volume_that_its_user_can_write():
    assert instruction("VOLUME") == "/results"
    assert "ALTGRAD_RESULTS=/results" in instruction("ENV")
    assert json.loads(instruction("CMD"))[-1] == "/results"
    assert re.search(r"useradd .*--uid (\d+) altgrad", DOCKERFILE).group(1) == instruction("USER")
    assert re.search(r"install --directory --owner altgrad .*/results", DOCKERFILE)


def test_the_cluster_manifest_runs_where_the_image_has_the_tree():
    manifest = yaml.safe_load((ROOT / "configs/cluster/kuberay_rayjob.yaml").read_text())
    assert f"cd {instruction('WORKDIR')} " in manifest["spec"]["entrypoint"]
