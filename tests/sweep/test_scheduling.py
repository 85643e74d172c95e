"""Real sweeps through Ray: GPUs shared out among trials (GPUs of Ray's imagination), and trials that ASHA stops."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from altgrad.compare import comparison
from altgrad.experiment import runner
from altgrad.results import Run, list_runs
from altgrad.show.sweep_progress import compute_sentence
from tests.servers.polling import PATIENCE
from tests.support.runs.small_runs import set_words
from tune.cluster.ray_session import local_ray
from tune.plan.options import SweepOptions, parse_options
from tune.plan.resources.machine import Machine, share_out
from tune.plan.sweep_record import create_sweep, open_sweep
from tune.plan.trials import plan_sweep
from tune.run import execution
from tune.run.interrupts import Interrupts
from tune.run.trainable import train_trial

pytestmark = pytest.mark.ray
FIELDS = set_words(
    model="micro", batch_size=2, eval_batches=1, eval_interval=1000, checkpoint_interval=1000, compile=False,
    warmup_steps=0, diagnostic_interval=1000, never_learned_fraction=1.0,
)  # fmt: skip


def train_in_company(parameters: dict[str, Any]) -> None:
    """A real trial that notes its GPUs and when it began, and first waits for as many as fit onto the GPUs."""
    runner.check_device = lambda *_: None  # which refuses to train on the CPU in the name of a GPU
    job = parameters["job"]
    results = Path(job["results"])
    note = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "none"), "began": time.time()}
    (results / f"{job['trial']['run']}.note").write_text(json.dumps(note))
    wanted = int((results / "wanted").read_text())
    while len(list(results.glob("*.note"))) < wanted and time.time() - note["began"] < PATIENCE:
        time.sleep(0.1)
    train_trial(parameters)


def swept(folder: Path, machine: Machine, *arguments: str, unwritable: str | None = None) -> dict[str, Run]:
    """The runs of a sweep on a machine that Ray believes to exist; one of them may be `unwritable`, and is left out."""
    words = [*arguments, "--results", str(folder), "--name", "s", "--set", *FIELDS]
    options = parse_options(words)
    plan = plan_sweep(options, machine)
    resources = share_out(options, machine, plan.trials)
    sweep = create_sweep(options, plan)
    if unwritable is not None:
        (folder / "s" / unwritable).write_text("a file where the run's folder should be")
    with local_ray(machine) as place, Interrupts() as interrupts:
        console = Console(quiet=True)
        execution.run_trials(sweep, plan.trials, options, resources, "disabled", console, place, interrupts, print)
    runs, broken = list_runs(sweep.folder)
    assert not broken and len(runs) == len(plan.trials) - (unwritable is not None)
    return {run.name: run for run in runs}


def most_at_once(runs: list[Run], notes: dict[str, Any]) -> int:
    """How many of the runs there were at the same moment, at most."""
    moments = [(notes[run.name]["began"], 1) for run in runs]
    moments += [(run.end["ended"], -1) for run in runs if run.end is not None]
    return max(itertools.accumulate(change for _, change in sorted(moments)))


@pytest.mark.parametrize(("gpus", "trials"), [(1, 6), pytest.param(2, 10, marks=pytest.mark.slow)])
def test_quarters_of_a_gpu_hold_four_trials_each_and_the_longest_start_first(
    gpus: int, trials: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "train_trial", train_in_company)
    (tmp_path / "wanted").write_text(str(4 * gpus))
    configs = tmp_path / "configs"
    configs.mkdir()
    for number in range(trials):  # the first by name are the shortest
        (configs / f"t{number}.yaml").write_text(f"format: E4M3\nmax_steps: {20 + number}\n")
    machine = Machine(cpus=4 * gpus, gpus=gpus, gpu_note=f"{gpus} imagined")
    runs = swept(
        tmp_path, machine, "--configs", str(configs), "--no-baseline", "--gpus-per-trial", "0.25",
        "--cpus-per-trial", "1",
    )  # fmt: skip
    assert {run.status for run in runs.values()} == {"completed"}
    notes = {name: json.loads((tmp_path / f"{name}.note").read_text()) for name in runs}
    by_gpu: dict[str, list[Run]] = {}
    for name, run in runs.items():
        by_gpu.setdefault(notes[name]["gpus"], []).append(run)
    assert by_gpu.keys() == {str(gpu) for gpu in range(gpus)}
    assert all(most_at_once(members, notes) == 4 for members in by_gpu.values())
    assert set(sorted(runs, key=lambda name: notes[name]["began"])[-2:]) == {"t0-s42", "t1-s42"}
    assert all(run.info["resources"] == {"cpus": 1.0, "gpus": 0.25} for run in runs.values())
    rows = comparison(list(runs.values()))
    hours = sum(row.seconds or 0.0 for row in rows) * 0.25 / 3600
    assert (compute_sentence(rows) or "").startswith(f"Compute: {hours:.3g} GPU-hours spent, 0 saved")


def test_asha_stops_a_bad_trial_and_no_baseline_however_bad(tmp_path: Path) -> None:
    machine = Machine(cpus=1, gpus=0, gpu_note="")  # one after another: who is compared with whom is known
    words = ("--formats", "E4M3", "--lr", "3e-3", "1e-9", "--max-steps", "130", "--scheduler", "asha")
    runs = swept(tmp_path, machine, *words, "--set", "no_context_fraction=1")  # no rule judges the bad baseline
    order = [run.name for run in sorted(runs.values(), key=lambda run: run.info["started"])]
    rates = ("0.003", "1e-09")
    assert order == [f"{name}-s42-lr{rate}" for name in ("bf16_baseline", "e4m3") for rate in rates]
    ends = {name: (run.status, run.table("steps", ["loss"]).num_rows) for name, run in runs.items()}
    assert ends.pop("e4m3-s42-lr1e-09") == ("stopped", 100)
    assert {steps for _, steps in ends.values()} == {130} and "stopped" not in {status for status, _ in ends.values()}
    stopped = json.loads((tmp_path / "s" / "e4m3-s42-lr1e-09" / "end.json").read_text())
    assert stopped["summary"]["reason"] == "stopped by --scheduler asha"
    saved = {row.run: row.seconds_saved for row in comparison(list(runs.values()))}
    assert saved.pop("e4m3-s42-lr1e-09") and not any(saved.values())


@pytest.mark.slow
def test_a_run_whose_folder_cannot_be_written_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(cpus=1, gpus=0, gpu_note="")
    words = ("--formats", "E4M3", "E5M2", "--max-steps", "12", "--retries", "1")
    runs = swept(tmp_path, machine, *words, unwritable="e4m3-s42")
    assert {name: run.status for name, run in runs.items()} == {
        "bf16_baseline-s42": "completed", "e5m2-s42": "completed",
    }  # fmt: skip
    assert "e4m3-s42: its end cannot be recorded" in capsys.readouterr().out
    assert [trial.run for trial in open_sweep(SweepOptions(results=str(tmp_path), resume="s")).unfinished()] == [
        "e4m3-s42"
    ]
