"""Loops of the documentation that need several processes, or another library's trainer, run as they stand."""

from __future__ import annotations

import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.other_libraries import FRAMEWORKS, ROOT, environment_with
from tests.support.processes import spawn_ranks

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "own_model.md"


def program(name: str, folder: Path) -> Path:
    found = re.search(rf"^```python\n(# {name}\.py\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    file = folder / f"{name}.py"
    file.write_text(found[1])
    return file


def one_of_two(rank: int, files: list[Path]) -> None:
    """A process in which the programs run, which meets the other one in a file instead of at a port."""
    torch.set_num_threads(1)
    joined = dist.init_process_group
    for file in files:
        meet = f"file://{file.with_suffix('.meet')}"
        dist.init_process_group = functools.partial(joined, init_method=meet, rank=rank, world_size=2)  # type: ignore[assignment]
        runpy.run_path(str(file), run_name="__main__")


def test_the_loops_on_two_processes_run_as_they_stand(tmp_path: Path) -> None:
    spawn_ranks(one_of_two, 2, [program(name, tmp_path) for name in ("ddp", "fsdp")])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_trainer", "lightning_loop"])
def test_a_loop_in_another_library_s_trainer_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning:altgrad", str(program(name, tmp_path))]
    environment = environment_with(FRAMEWORKS)
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
