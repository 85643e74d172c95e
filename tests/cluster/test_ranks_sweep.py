"""Trials on several workers in a sweep: what is planned and refused, and a real sweep that loses a rank, twice."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from altgrad.results import Run, read_run
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner, TrainConfig
from tests.servers.polling import wait_until
from tests.servers.sweep_process import attempt, checkpoints, complete, family, start, write_configs
from tests.support.processes import spawn_ranks
from tests.support.runs.small_runs import SWEPT
from tune.plan.options import SweepError, SweepOptions, parse_options
from tune.plan.resources.machine import Machine, share_out
from tune.plan.trial import Trial

ROOT = Path(__file__).parents[2]
SIZE = 2
LONG = 240  # steps: enough to lose a rank twice
EAGER = {"threads": 1, "compile": False}
SMALL = SWEPT | EAGER
CONFIGS: dict[str, dict[str, Any]] = {
    "e4m3": {"format": "E4M3", "rounding": "stochastic", "max_steps": LONG},
    "later": {"format": "E4M3", "max_steps": 20},
}


def shared(options: SweepOptions, machine: Machine, **fields: Any) -> Any:
    return share_out(options, machine, [Trial("run", TrainConfig(**SMALL).altered(**fields))] * 8)


def test_workers_are_counted_when_the_machine_is_shared_out():
    gpus = Machine(16, 8, "8 CUDA GPUs found")
    assert shared(SweepOptions(workers_per_trial=2), gpus).sentence() == (
        "4 at a time, on 2 workers, each with 1 CPU and 1 GPU, 1 thread"
    )
    assert shared(SweepOptions(workers_per_trial=2, cpus_per_trial=2), Machine(16, 0, "")).concurrent == 4
    assert shared(SweepOptions(), gpus).workers == 1


@pytest.mark.parametrize(
    ("given", "machine", "batch_size", "words"),
    [
        ({"cpus_per_trial": 2}, Machine(4, 0, "no CUDA GPU found"), 12, "needs 3 x 2 CPU cores, there are 4"),
        ({"gpus_per_trial": 1}, Machine(8, 2, "2 CUDA GPUs found"), 12, "needs 3 x 1 GPU; 2 CUDA GPUs found"),
        ({"gpus_per_trial": 0.5}, Machine(8, 2, "2 CUDA GPUs found"), 12, "cannot share a GPU"),
        ({}, Machine(8, 0, "no CUDA GPU found"), 4, "run has batch_size=4, not a multiple of it"),
    ],
)
def test_what_cannot_be_trained_on_several_workers_is_refused_in_one_line(given, machine, batch_size, words):
    with pytest.raises(SweepError, match=r"^--workers-per-trial 3: [^\n]*$") as caught:
        shared(SweepOptions(workers_per_trial=3, **given), machine, batch_size=batch_size)
    assert words in str(caught.value)


def test_the_resume_command_keeps_the_workers():
    words = shlex.split(parse_options(["--workers-per-trial", "2"]).resume_command("s"))
    assert words[words.index("--workers-per-trial") + 1] == "2"
    assert "--workers-per-trial" not in parse_options([]).resume_command("s")


# one that loses ranks


@dataclasses.dataclass(frozen=True)
class Story:
    """A sweep that lost a rank, then another one."""

    home: Path
    code: int
    output: str
    left: int

    def run(self, name: str) -> Run:
        return read_run(Folder.at(self.home / "out" / "s" / f"{name}-s42"))


def undisturbed(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    FormatExperimentRunner(TrainConfig(**SMALL | CONFIGS["e4m3"]), Folder.at(folder / "undisturbed")).run()
    dist.destroy_process_group()


def rank_processes(sweep: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in family(sweep) if "RayTrainWorker" in child.name() + " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    home = tmp_path_factory.mktemp("sweep")
    (home / "home").mkdir()
    write_configs(home / "configs", CONFIGS, **EAGER)
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--configs", "configs", "--no-baseline"]
    command += ["--results", "out", "--name", "s", "--wandb", "disabled", "--max-concurrent", "1"]
    process = start([*command, "--workers-per-trial", str(SIZE), "--cpus-per-trial", "0.5"], home)
    run = home / "out" / "s" / "e4m3-s42"
    before: set[str] = set()
    for number, victim in enumerate((0, 1)):
        wait_until(lambda n=number, old=before: attempt(run) == n and bool(checkpoints(run) - old), process)
        before = checkpoints(run)
        ranks = sorted(rank_processes(process), key=lambda rank: rank.pid)
        assert len(ranks) == SIZE
        ranks[victim].kill()
    processes = family(process)
    done = complete(process)
    _, left = psutil.wait_procs(processes, timeout=60)
    return Story(home, done.returncode, done.stdout, len(left))


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_loses_a_rank_goes_on_from_its_checkpoint_bit_for_bit(story: Story, tmp_path: Path) -> None:
    assert story.code == 0, story.output
    assert story.output.count("died; starts again from its last checkpoint") == 2
    run = story.run("e4m3")
    assert (run.status, run.info["workers"], run.info["attempt"]) == ("completed", SIZE, 2)
    restores = [event for event in run.table("events").to_pylist() if event["kind"] == "restore"]
    assert len(restores) == 2
    spawn_ranks(undisturbed, SIZE, tmp_path)
    alone = read_run(Folder.at(tmp_path / "undisturbed"))
    for metric in ("loss", "validation_loss", "gradient_norm", "stall_rate"):
        assert run.table("steps", [metric])[metric].equals(alone.table("steps", [metric])[metric]), metric


@pytest.mark.ray
@pytest.mark.slow
def test_its_workers_leave_room_for_the_next_trial_and_no_process_behind(story: Story) -> None:
    assert story.run("later").status == "completed"
    assert story.left == 0
