"""A disk that is really full: a small filesystem of its own, filled to its last byte.

Mounting takes root; elsewhere these tests skip, and test_object_store has the same refusal injected.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from altgrad.compare import comparison
from altgrad.config.train_config import load_config
from altgrad.experiment.outcome import Report
from altgrad.results import Run, list_runs, read_events, read_run
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from tests.servers.polling import PATIENCE, Poller, polling, wait_until
from tests.servers.ray_nodes import environment

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"model": "micro", "warmup_steps": 5, "eval_batches": 2, "compile": False}
slow = pytest.mark.slow
METRICS = ["step", "loss", "validation_loss", "gradient_norm", "stall_rate"]


@dataclass(frozen=True)
class Disk:
    """A filesystem of a few MiB, mounted at `path`."""

    path: Path

    def fill(self) -> None:
        """Leave no byte."""
        with (self.path / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            for size in (65536, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def free(self) -> None:
        (self.path / "ballast").unlink()


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode != 0:
        pytest.skip(f"may not mount a small filesystem: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def rows(run: Run) -> list[Any]:
    return run.table("steps", METRICS[1:]).select(METRICS).to_pylist()


def half_written(folder: Path) -> list[str]:
    """Files of a run that are not whole."""
    found = [str(path) for path in folder.rglob(".*") if "wandb" not in path.parts]
    for path in folder.rglob("*.*"):
        try:
            if path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".json" and "wandb" not in path.parts:
                Folder.at(path.parent).read_json(path.name)
            elif path.suffix == ".pt":
                torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            found.append(f"{path}: {error}")
    return found


def test_a_run_trains_on_while_its_disk_is_full_and_loses_nothing(tmp_path: Path) -> None:
    fields = {"batch_size": 4, "max_steps": 60, "eval_interval": 10, "diagnostic_interval": 10, "threads": 1}
    config = TrainConfig(format="E4M3", **SMALL | fields, checkpoint_interval=5)
    with small_disk(tmp_path / "disk", "4m") as disk:

        def report(news: Report) -> None:
            if news.step == 20:
                disk.fill()
            if news.step == 40:
                assert not half_written(disk.path / "run")
                disk.free()

        run_format_experiment(config, disk.path / "run", report=report, report_interval=10)
        run = read_run(Folder.at(disk.path / "run"))
        alone = run_format_experiment(config, tmp_path / "alone")
        assert run.status == "completed" and rows(run) == rows(read_run(alone.folder))
        assert not half_written(disk.path / "run")
        assert "storage_outage" in [event.kind for event in read_events(run)]


# One sweep whose disk is full for a while, then for good, and that is resumed when there is space again

CONFIGS: dict[str, dict[str, Any]] = {
    "a_full": {"format": "E4M3", "max_steps": 1200, "batch_size": 8},
    "b_next": {"format": "BF16", "max_steps": 40, "batch_size": 4},
}
SWEEP = SMALL | {"eval_interval": 50, "diagnostic_interval": 50, "checkpoint_interval": 20}
# Instead of five minutes, in every process of the sweep, before anything else has read the value
_LESS_PATIENT = """
import altgrad.storage.patience
altgrad.storage.patience.PATIENCE = 8.0
altgrad.storage.patience.Outage.__init__.__defaults__ = (8.0,)
"""


@dataclass(frozen=True)
class Survivor:
    gave_up: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]
    half_written: list[str]
    before_resume: dict[str, str]
    runs: dict[str, Run]
    undisturbed: dict[str, Run]
    poller: Poller


def newest_checkpoint(run: Path) -> str:
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="")


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survivor]:
    home = tmp_path_factory.mktemp("full")
    (home / "configs").mkdir()
    for name, fields in CONFIGS.items():
        (home / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(SWEEP | fields))
    (home / "site").mkdir()
    (home / "site" / "sitecustomize.py").write_text(_LESS_PATIENT)
    variables = environment(home, PYTHONPATH=f"{home / 'site'}:{ROOT}")
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", str(home / "disk" / "out")]
    command += ["--max-concurrent", "1", "--cpus-per-trial", "1"]
    with small_disk(home / "disk", "12m") as disk:
        folder = disk.path / "out" / "s"
        poller = Poller(Folder.at(folder))

        def start(*options: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*command, *options],
                cwd=home,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
            output, _ = process.communicate(timeout=PATIENCE)
            return subprocess.CompletedProcess(process.args, process.returncode, output)

        process = start("--name", "s", "--configs", "configs", "--no-baseline")
        wait_until((folder / "sweep.json").exists, process)
        with polling(poller):
            wait_until(lambda: newest_checkpoint(folder / "a_full-s42") != "", process)
            disk.fill()
            time.sleep(4.0)
            disk.free()
            newest = newest_checkpoint(folder / "a_full-s42")
            wait_until(lambda: newest_checkpoint(folder / "a_full-s42") > newest, process)
            disk.fill()
            gave_up = end(process)
            disk.free()
            before = {run.name: run.status for run in list_runs(Folder.at(folder))[0]}
            damaged = half_written(folder)
            resumed = end(start("--resume", "s"))
        runs = {run.name: run for run in list_runs(Folder.at(folder))[0]}
        for name in CONFIGS:
            config = load_config(home / "configs" / f"{name}.yaml").altered(threads=1)
            run_format_experiment(config, home / "alone" / f"{name}-s42")
        alone = {run.name: run for run in list_runs(Folder.at(home / "alone"))[0]}
        yield Survivor(gave_up, resumed, damaged, before, runs, alone, poller)


@slow
def test_it_goes_on_when_there_is_space_again(survivor: Survivor) -> None:
    kinds = [event.kind for event in read_events(survivor.runs["a_full-s42"])]
    assert "storage_outage" in kinds


@slow
def test_without_space_for_good_it_ends_with_one_line_that_says_why_and_how_to_go_on(survivor: Survivor) -> None:
    assert survivor.gave_up.returncode == 1
    *_, why, how = survivor.gave_up.stdout.strip().splitlines()
    assert "storage refused for" in why and "No space left on device" in why and "a_full-s42" in why
    assert how.split()[1].endswith("sweep.py") and "--resume s" in how
    assert "Traceback" not in survivor.gave_up.stdout
    assert survivor.before_resume["a_full-s42"] in ("running", "killed")


@slow
def test_nothing_is_half_written_and_all_was_readable_at_every_moment(survivor: Survivor) -> None:
    assert not survivor.half_written
    assert survivor.poller.reads > 20 and not survivor.poller.problems


@slow
def test_resumed_it_ends_with_the_results_of_an_undisturbed_one(survivor: Survivor) -> None:
    assert survivor.resumed.returncode == 0, survivor.resumed.stdout
    assert survivor.runs.keys() == survivor.undisturbed.keys()
    for name, run in survivor.undisturbed.items():
        assert survivor.runs[name].status == "completed"
        assert rows(survivor.runs[name]) == rows(run)
    assert [row.step for row in comparison(survivor.runs.values())] == [1200, 40]
