"""Loops of the documentation that need several processes, or another library's trainer, run as they stand."""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own_model.md"
# Trainers of others and what they need, beside the environment: one of their packages would change how torchao imports.
FRAMEWORKS = Path(os.environ.get("ALTGRAD_FRAMEWORKS", ROOT / ".venv/frameworks"))


def program(name: str, folder: Path) -> Path:
    found = re.search(rf"^```python\n(# {name}\.py\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    file = folder / f"{name}.py"
    file.write_text(found[1])
    return file


def run(folder: Path, *command: str, paths: tuple[Path, ...] = ()) -> None:
    path = os.pathsep.join(str(one) for one in (ROOT, *paths))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, text=True, capture_output=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr


def one_of_two(rank: int, files: list[Path]) -> None:
    """A process in which the programs run, which meets the other one in a file instead of at a port."""
    torch.set_num_threads(1)
    joined = dist.init_process_group
    for file in files:
        meet = f"file://{file.with_suffix('.meet')}"
        dist.init_process_group = functools.partial(joined, init_method=meet, rank=rank, world_size=2)  # type: ignore[assignment]
        runpy.run_path(str(file), run_name="__main__")


def test_the_loops_on_two_processes_run_as_they_stand(tmp_path: Path) -> None:
    mp.spawn(one_of_two, ([program(name, tmp_path) for name in ("ddp", "fsdp")],), nprocs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_trainer", "lightning_loop"])
def test_a_loop_in_another_library_s_trainer_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    if not (FRAMEWORKS / "lightning").is_dir():
        pytest.skip(f"no lightning and transformers in {FRAMEWORKS.name}: make .venv/frameworks")
    run(tmp_path, str(program(name, tmp_path)), paths=(FRAMEWORKS,))
