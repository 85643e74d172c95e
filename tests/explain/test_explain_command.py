"""A sweep of branches that explains its collapse at the end, and the command that explains it again."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.experiment.checkpoints import checkpointing
from altgrad.explain import read_explanation
from altgrad.results import read_run, read_start
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import SMALL, losses
from tests.support.runs.sweep_plans import SCRIPT
from tune.explain import main

OVERFLOWING = "{format: E5M2, scaling: static, static_scale: 1e-9, overflow: inf}"


@pytest.mark.ray
def test_a_sweep_of_branches_explains_its_collapse(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpointing, "delete_old", lambda *_, **__: None)
    run_format_experiment(SMALL.altered(max_steps=30), tmp_path / "trunk")
    words = ["--branch-from", str(tmp_path / "trunk"), "--at", "5", "--formats", "E4M3", "--explain"]
    words += ["--set", f"layer_gemms={{'*mlp.down': {{wgrad: {{gradient: {OVERFLOWING}}}}}}}"]
    words += ["--results", str(tmp_path / "results"), "--name", "swept", "--wandb", "disabled"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wgrad.gradient of h.0.mlp.down alone prevents the collapse" in " ".join(done.stdout.split())
    sweep = Folder.at(tmp_path / "results" / "swept")
    trunk = {row["step"]: row for row in losses(read_run(Folder.at(tmp_path / "trunk")))}
    # the baseline is what the trunk itself went on to be
    assert losses(read_run(sweep / "bf16_baseline-s42")) == [trunk[step] for step in range(6, 31)]
    with open(tmp_path / "results" / "swept" / "comparison.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert {row["branched_from"] for row in rows.values()} == {"trunk at step 5"}
    assert rows["bf16_baseline-s42"]["gap"] == "" and rows["bf16_baseline-s42"]["status"] == "completed"
    run = read_run(sweep / "e4m3-s42")
    assert run.verdict is not None and run.info["branch"]["step"] == 5
    record = read_explanation(run.folder)
    assert record is not None and record["finished"] and record["conclusion"]["rule"] == "operands"
    assert record["arms"][0]["repeats"] is True and record["start"] == 5
    arm = read_start(run.folder / "explain" / record["arms"][1]["name"])
    assert arm["branch"]["run"] == "trunk" and arm["threads"] == run.info["threads"]
    report = Path(str(run.folder / "failure_report.md")).read_text()
    assert report.index("## What moved first") < report.index("## Cause, tested") < report.index("## What to try")
    assert "1. Tried, and it worked: wgrad.gradient of h.0.mlp.down in BF16: no collapse until step" in report
    assert main([str(sweep), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "control: unchanged replay" in said and "then the bisection over 30 cells" in said
    assert main([str(sweep / "bf16_baseline-s42")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
