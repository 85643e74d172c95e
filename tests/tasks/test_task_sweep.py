"""A sweep of a task from a file in the current folder, through a real Ray: it is what the same run is without Ray."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.compare import comparison
from altgrad.results import Run, list_runs, read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.servers.sweep_process import complete, start
from tests.support.runs import own_tasks
from tests.support.runs.small_runs import SMALL, losses, set_words

ROOT = Path(__file__).parents[2]
FIELDS = {
    "max_steps": 12, "batch_size": 12, "learning_rate": 0.01, "eval_interval": 6, "eval_batches": 4, "compile": False,
    "diagnostic_interval": 4, "checkpoint_interval": 5, "warmup_steps": 2, "seed": 7,
}  # fmt: skip


@pytest.mark.ray
def test_a_sweep_of_a_task_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "my_task.py").write_text(inspect.getsource(own_tasks))
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--task", "my_task:Quadrants", "--task-arg", "width=12"]
    command += ["--formats", "E4M3", "--interventions", "none", "shift", "--results", "out", "--name", "one"]
    command += ["--wandb", "disabled"]
    done = complete(start([*command, "--set", *set_words(**FIELDS)], tmp_path))
    assert done.returncode == 0, done.stdout
    runs = runs_of(tmp_path / "out" / "one", done)
    assert runs.keys() == {"bf16_baseline-s7", "e4m3-s7", "e4m3-s7+shift"}

    config = SMALL.altered(
        format="E4M3", task="tests.support.runs.own_tasks:Quadrants", task_args={"width": 12}, **FIELDS
    )
    alone = read_run(run_format_experiment(config, tmp_path / "alone").folder)
    swept = runs["e4m3-s7"]
    assert losses(swept) == losses(alone)
    assert swept.table("own").select(["step", "name", "value"]) == alone.table("own").select(["step", "name", "value"])
    for key in ("initial_weights_hash", "batches_hash", "task_hash"):
        assert len({run.info[key] for run in runs.values()}) == 1 and swept.info[key]
    assert swept.info["unit"] == "nats" and swept.info["vocabulary"] == own_tasks.CLASSES
    rows = comparison(runs.values())
    assert all(row.is_baseline or (row.gap is not None and math.isfinite(row.gap)) for row in rows)


def runs_of(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Run]:
    runs, broken = list_runs(Folder.at(folder))
    assert not broken, done.stdout
    return {run.name: run for run in runs}
