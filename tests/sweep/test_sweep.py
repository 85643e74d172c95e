"""Whole sweeps through a real Ray: one that simply runs, and one that is killed in every way on its way.

Each sweep costs seconds of starting Ray, so all claims are made on these two.
"""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from altgrad.config.train_config import load_config
from altgrad.results import Run, list_runs, read_run
from altgrad.storage.folder import Folder
from altgrad.training import ExperimentResult, TrainConfig, run_format_experiment
from tests.servers.polling import PATIENCE, wait_for, wait_for_content, wait_until
from tests.servers.sweep_process import attempt, checkpoints, complete, family, processes_of, start, write_configs
from tests.support.runs.small_runs import losses
from tune.plan.resources.machine import this_machine

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray  # a fixture is a whole story; about 70 s on two idle cores
LONG = 500  # steps: enough to be killed several times


def listening(processes: Sequence[psutil.Process]) -> set[str]:
    """Addresses on which these processes accept connections."""
    pids = {process.pid for process in processes}
    return {c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in pids}


def without_ray(config: TrainConfig, folder: Path, threads: int = 1) -> ExperimentResult:
    """The same run as a sweep's trial, in this process: the oracle."""
    return run_format_experiment(config.altered(threads=threads), folder)


# one that simply runs


@dataclass(frozen=True)
class Finished:
    """A sweep that ended by itself."""

    home: Path
    code: int
    output: str
    runs: dict[str, Run]

    @property
    def folder(self) -> Path:
        return self.home / "out" / "one"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two formats, one that lags behind the baseline while both train, one that never learns."""
    home = tmp_path_factory.mktemp("finished")
    (home / "home").mkdir()
    configs: dict[str, dict[str, Any]] = {
        "a_bf16": {"format": "BF16", "max_steps": 60},
        "b_lagging": {"format": "E7M0", "max_steps": 60, "gap_limit": 1e-3, "gap_patience": 5},
        "c_hopeless": {"format": "E2M5", "max_steps": 60, "never_learned_fraction": 0.2, "never_learned_margin": 5.0},
        "d_e4m3": {"format": "E4M3", "max_steps": 60},
    }
    write_configs(home / "configs", configs)
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--configs", "configs"]
    command += ["--results", "out", "--name", "one", "--max-concurrent", "2", "--cpus-per-trial", "1"]
    process = start(command, home)
    output, _ = process.communicate(timeout=PATIENCE)
    runs, broken = list_runs(Folder.at(home / "out" / "one"))
    assert not broken, output
    return Finished(home, process.returncode, output, {run.name: run for run in runs})


def test_a_sweep_with_collapses_succeeds_and_shows_everything_to_read(finished: Finished) -> None:
    assert finished.code == 0, finished.output
    for words in ("Comparison", "a_bf16-s42", "baseline", f"results: {finished.folder}", "streamlit run dashboard"):
        assert words in finished.output
    for run in ("b_lagging-s42", "c_hopeless-s42"):
        assert f"failure report: {finished.folder / run / 'failure_report.md'}" in finished.output


def test_each_trial_ends_as_it_should_with_its_reason_in_table_and_folder(finished: Finished) -> None:
    with (finished.folder / "comparison.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows.keys() == finished.runs.keys()
    status = {run: row["status"] for run, row in rows.items()}
    assert status == {run: "collapsed" if run[0] in "bc" else "completed" for run in rows}
    rules = {run.name: run.verdict.rule for run in finished.runs.values() if run.verdict is not None}
    assert rules == {"b_lagging-s42": "gap_to_baseline", "c_hopeless-s42": "never_learned"}
    for run in rules:
        verdict = finished.runs[run].verdict
        assert verdict is not None
        assert rows[run]["reason"] == verdict.sentence()
        assert int(rows[run]["collapse_step"]) == verdict.step
        assert verdict.rule in (finished.folder / run / "failure_report.md").read_text()


def test_all_trials_start_from_the_same_weights_on_the_same_batches_with_one_thread(finished: Finished) -> None:
    for key in ("initial_weights_hash", "batches_hash"):
        assert len({run.info[key] for run in finished.runs.values()}) == 1
    assert {run.info["threads"] for run in finished.runs.values()} == {1}


def test_a_trial_is_bit_for_bit_the_same_run_as_without_ray(finished: Finished, tmp_path: Path) -> None:
    config = load_config(finished.home / "configs" / "d_e4m3.yaml")
    alone = without_ray(config, tmp_path / "alone")
    assert losses(finished.runs["d_e4m3-s42"]) == losses(read_run(alone.folder))


def test_every_trial_has_an_offline_tracking_run_and_a_collapse_its_report(finished: Finished) -> None:
    for run in finished.runs:
        [file] = (finished.folder / run / "wandb").glob("offline-run-*/*.wandb")
        if run == "c_hopeless-s42":
            wait_for_content(file, b"failure_report.md")  # its service may outlive the run for a moment


def test_a_sweep_leaves_no_process_and_no_litter(finished: Finished) -> None:
    assert not (finished.folder / ".ray").exists()
    assert not (finished.home / "home" / ".ray").exists()
    wait_for(lambda: not processes_of(finished.home / "home"))


# one that is killed in every way


@dataclass(frozen=True)
class Survivor:
    """What a sweep looked like after each of its deaths."""

    home: Path
    interrupted: subprocess.CompletedProcess[str]
    failed: subprocess.CompletedProcess[str]
    mended: subprocess.CompletedProcess[str]
    worker_restarts: int
    left_after_kill: int
    addresses: set[str]

    def run(self, name: str) -> Run:
        return read_run(Folder.at(self.home / "out" / "two" / name))


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Survivor:
    """A worker is killed, the sweep interrupted, resumed, its driver killed, resumed, a trial fails, resumed."""
    home = tmp_path_factory.mktemp("survivor")
    (home / "home").mkdir()
    text = home / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 200)
    configs: dict[str, dict[str, Any]] = {
        "bf16": {"format": "BF16", "max_steps": LONG},
        "e4m3": {"format": "E4M3", "max_steps": LONG},
        "doomed": {"format": "E5M2", "max_steps": 20, "data": str(text)},
    }
    write_configs(home / "configs", configs)
    runs = [home / "out" / "two" / f"{name}-s42" for name in ("bf16", "e4m3")]
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--configs", "configs", "--no-baseline"]
    command += ["--results", "out", "--name", "two", "--max-concurrent", "2", "--retries", "1", "--wandb", "disabled"]

    process = start(command, home)
    wait_until(lambda: all(checkpoints(run) for run in runs), process)
    workers = [child for child in family(process) if child.name().startswith("ray::ImplicitFunc")]
    assert len(workers) == 2
    addresses = listening(family(process))
    workers[0].kill()
    wait_until(lambda: any(attempt(run) == 1 for run in runs), process)
    worker_restarts = sum(attempt(run) == 1 for run in runs)
    os.killpg(process.pid, signal.SIGINT)
    interrupted = complete(process)
    resume = shlex.split(interrupted.stdout.strip().splitlines()[-1])

    before = [attempt(run) for run in runs]
    process = start(resume, home)
    wait_until(lambda: all(attempt(run) == n + 1 for run, n in zip(runs, before, strict=True)), process)
    children = family(process)
    process.kill()
    process.communicate()
    _, left = psutil.wait_procs(children, timeout=PATIENCE)

    process = start(resume, home)
    wait_until(lambda: all(attempt(run) == n + 2 for run, n in zip(runs, before, strict=True)), process)
    text.rename(home / "away.txt")
    failed = complete(process)
    (home / "away.txt").rename(text)
    mended = complete(start(resume, home))
    return Survivor(home, interrupted, failed, mended, worker_restarts, len(left), addresses)


def test_a_trial_whose_worker_dies_starts_again_alone(survivor: Survivor) -> None:
    assert survivor.worker_restarts == 1
    assert "starts again from its last checkpoint" in survivor.interrupted.stdout


def test_an_interrupted_sweep_prints_the_command_that_goes_on(survivor: Survivor) -> None:
    assert survivor.interrupted.returncode == 130
    assert "stopped by SIGINT" in survivor.interrupted.stdout
    assert "--resume two" in survivor.interrupted.stdout.strip().splitlines()[-1]


def test_nothing_listens_beyond_this_machine(survivor: Survivor) -> None:
    assert survivor.addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_killed_driver_takes_its_processes_along(survivor: Survivor) -> None:
    assert survivor.left_after_kill == 0


@pytest.mark.parametrize("name", ["bf16", "e4m3"])
def test_after_all_that_a_run_is_bit_for_bit_the_undisturbed_one(name: str, survivor: Survivor, tmp_path: Path) -> None:
    run = survivor.run(f"{name}-s42")
    config = load_config(survivor.home / "configs" / f"{name}.yaml")
    alone = without_ray(config, tmp_path / "alone", run.info["threads"])
    assert run.status == "completed"
    assert losses(run) == losses(read_run(alone.folder))
    last = run.info["attempt"]
    restores = [event["attempt"] for event in run.table("events").to_pylist() if event["kind"] == "restore"]
    assert last >= 2 and last in restores  # an attempt killed within its first seconds may leave none


def test_a_trial_that_raises_is_marked_failed_and_the_others_go_on(survivor: Survivor) -> None:
    assert survivor.failed.returncode == 1
    assert "bf16-s42  completed" in survivor.failed.stdout and "e4m3-s42  completed" in survivor.failed.stdout
    assert "failed: doomed-s42: ConfigError" in survivor.failed.stdout and "text.txt" in survivor.failed.stdout


def test_resume_after_a_failure_runs_only_what_failed(survivor: Survivor) -> None:
    assert survivor.mended.returncode == 0, survivor.mended.stdout
    assert "doomed-s42  starts" in survivor.mended.stdout and "bf16-s42  starts" not in survivor.mended.stdout
    assert survivor.run("doomed-s42").status == "completed"


def test_a_trial_that_is_left_alone_trains_with_the_threads_it_was_planned_with(
    survivor: Survivor, tmp_path: Path
) -> None:
    """Three trials share the cores, the last resume has one: more threads would add in another order."""
    threads = {survivor.run(f"{name}-s42").info["threads"] for name in ("bf16", "e4m3", "doomed")}
    assert threads == {max(1, this_machine().cpus // 3)}
    config = load_config(survivor.home / "configs" / "doomed.yaml").altered(threads=threads.pop())
    alone = run_format_experiment(config, tmp_path / "alone")
    assert losses(survivor.run("doomed-s42")) == losses(read_run(alone.folder))
