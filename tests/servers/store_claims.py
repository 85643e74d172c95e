"""What holds for results on any object store, whichever server is behind it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altgrad.compare import comparison
from altgrad.experiment.outcome import Report
from altgrad.results import list_runs, list_sweeps, read_events, read_run
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from tests.support.runs.small_runs import losses

SMALL: dict[str, Any] = {
    "model": "micro", "batch_size": 4, "max_steps": 20, "eval_interval": 10, "eval_batches": 2,
    "diagnostic_interval": 10, "checkpoint_interval": 5, "warmup_steps": 5, "threads": 1, "compile": False,
}  # fmt: skip


def check_printed_location(location: str, path: str) -> None:
    """A folder's location survives being printed and read again."""
    folder = Folder.at(location) / "c"
    folder.write_bytes("x", b"content")
    again = Folder.at(str(folder))
    assert again.path == path and again.read_bytes("x") == b"content"


def check_interrupted_run(location: str, disk: Path) -> None:
    """A run that was interrupted goes on where its folder is, and ends bit for bit like the same run on a disk."""
    config = TrainConfig(format="E4M3", **SMALL)
    folder = Folder.at(location) / "run"

    def interrupt(report: Report) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_format_experiment(config, folder, report=interrupt, report_interval=7)
    run_format_experiment(config, folder)
    run_format_experiment(config, disk)
    runs, broken = list_runs(Folder.at(location))
    assert not broken and [run.name for run in runs] == ["run"]
    assert runs[0].status == "completed" and runs[0].info["attempt"] == 1
    restore = [event for event in read_events(runs[0]) if event.kind == "restore"]
    assert [event.detail["from_step"] for event in restore] == [5]
    assert losses(runs[0]) == losses(read_run(Folder.at(disk)))
    assert comparison(runs)[0].step == 20


def check_resumed_sweep(location: str, sweep: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A sweep's results are there, and `--resume` runs again what has not ended, with the same losses.

    `sweep(*options)` runs `tune/sweep.py` with this location as its results root.
    """
    settings = [f"{name}={value}" for name, value in SMALL.items() if name not in ("threads", "model", "max_steps")]
    options = ["--name", "s", "--formats", "E4M3", "--model", "micro", "--max-steps", "20", "--wandb", "disabled"]
    done = sweep(*options, "--set", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Folder.at(location) / "s"
    assert [found.name for found in list_sweeps(Folder.at(location))] == ["s"]
    runs, broken = list_runs(folder)
    assert not broken and {run.name: run.status for run in runs} == {
        "bf16_baseline-s42": "completed",
        "e4m3-s42": "completed",
    }
    before = losses(runs[1])
    (folder / "e4m3-s42").delete("end.json")
    again = sweep("--resume", "s", "--wandb", "disabled")
    assert again.returncode == 0, again.stdout + again.stderr
    run = read_run(folder / "e4m3-s42")
    assert run.status == "completed" and run.info["attempt"] == 1 and losses(run) == before
    assert "bf16_baseline-s42  starts" not in again.stdout
    assert folder.has("comparison.md") and not (folder / ".ray").list()
