"""`python -m bench.gpu` without a GPU: every part finds its numbers on a CPU, and a part that fails loses nothing."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu.parts import PARTS

CPU = torch.device("cpu")
# numbers that each part finds on a CPU in small sizes; others start processes of their own
FOUND = {"kernels": 11, "steps_50M": 6, "native": 1, "memory": 3, "comparison": 3}


@pytest.mark.parametrize("part", FOUND)
def test_a_part_finds_its_numbers_on_a_cpu_in_small_sizes(part):
    with torch.compiler.set_stance("force_eager"):
        rows = list(PARTS[part](CPU, True))
    assert len(rows) == FOUND[part]
    assert all(row["value"] > 0 for row in rows)


def test_what_a_part_printed_before_it_failed_is_kept_and_the_other_parts_run(tmp_path, monkeypatch, capsys):
    """In place of python: a program that prints one number and dies."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho \'{"what": "copy", "value": 2.5, "unit": "GB/s"}\'\necho lost >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    arguments = ["bench.gpu", "--device", "cpu", "--small", "--out", str(tmp_path / "out"), "kernels", "native"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    parts = json.loads((tmp_path / "out/cpu-small.json").read_text())["parts"]
    assert {part: (len(found["rows"]), found["note"]) for part, found in parts.items()} == {
        "kernels": (1, "failed: lost"), "native": (1, "failed: lost"),
    }  # fmt: skip
    table = (tmp_path / "out/cpu-small.md").read_text()
    assert "| kernels | copy | 2.5 GB/s | |" in table and "- native: failed: lost" in table


def test_a_part_that_takes_too_long_is_ended_and_without_time_none_starts(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho \'{"what": "copy", "value": 2.5, "unit": "GB/s"}\'\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(command, "_LEAST", 0)
    ended = command._run("kernels", "cpu", True, 0.5)
    assert ended["note"] == "ended after 0 s" and len(ended["rows"]) <= 1
    assert command._run("kernels", "cpu", True, -1.0) == {"rows": [], "seconds": 0.0, "note": "not run: no time left"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_device_one_line_says_how_to_try_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--device cpu --small tries the command without one" in capsys.readouterr().err
