"""A run in a process that pretends to have a GPU is repeated only if something that it read has changed."""

from __future__ import annotations

import json

import pytest

from tests.cuda_code import process


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The runs that were made, of a module that reads `format.py` of a project and writes `found.json`."""
    made = []

    def run(module, folder, cache, *arguments):
        source = (process.ROOT / "format.py").read_text()
        (folder / "found.json").write_text(json.dumps(source))
        (folder / "read.json").write_text(json.dumps({"format.py": process._hash(process.ROOT / "format.py")}))
        made.append((module, *arguments))
        return f"{source} was read"

    monkeypatch.setattr(process, "_run", run)
    monkeypatch.setattr(process, "ROOT", tmp_path)
    monkeypatch.setattr(process, "KEPT", tmp_path / "kept")
    (tmp_path / "format.py").write_text("E4M3")
    return made


def run(tmp_path, number: int, *arguments: str) -> tuple[str, str]:
    folder = tmp_path / f"folder{number}"
    folder.mkdir(exist_ok=True)
    printed = process.run("generate", folder, *arguments)
    return printed, json.loads((folder / "found.json").read_text())


def test_a_run_is_taken_from_the_kept_ones_with_all_that_it_wrote(runs, tmp_path):
    assert run(tmp_path, 1) == run(tmp_path, 2) == ("E4M3 was read", "E4M3")
    assert len(runs) == 1


def test_other_arguments_files_or_sources_are_another_run(runs, tmp_path):
    run(tmp_path, 1)
    run(tmp_path, 2, "bf16")
    (tmp_path / "folder3").mkdir()
    (tmp_path / "folder3" / "sources.json").write_text("{}")
    run(tmp_path, 3)
    assert len(runs) == 3
    (tmp_path / "format.py").write_text("E5M2")
    assert run(tmp_path, 4) == ("E5M2 was read", "E5M2")
    assert len(runs) == 4
    (tmp_path / "format.py").write_text("E4M3")
    assert run(tmp_path, 5) == ("E4M3 was read", "E4M3")
    assert len(runs) == 4


def test_the_oldest_runs_are_forgotten(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_MOST_KEPT", 2)
    for number in range(4):
        run(tmp_path, number, str(number))
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_process_depends_on_the_kernel_the_formats_and_the_recipes():
    read = process._read_by("generate")
    assert {"tests/cuda_code/generate.py", "tests/cuda_code/guard.cpp", "altgrad/config/recipes/mxfp8.yaml"} <= set(
        read
    )
    assert not any("site-packages" in name for name in read)
