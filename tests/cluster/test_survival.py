"""One sweep on a two-node cluster with its results on S3 that loses what it can lose: a node, the store, its driver.

Worker and driver kills on one machine are in test_sweep, a hanging trial and a full memory in test_steering.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from altgrad.compare import Row, comparison
from altgrad.config.train_config import load_config
from altgrad.results import Run, list_runs, read_events, read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.servers.object_store import ENVIRONMENT, ObjectStore, object_store
from tests.servers.polling import Poller, polling, wait_until
from tests.servers.ray_nodes import environment, free_port, ray_node
from tests.servers.sweep_process import complete, processes_of, write_configs

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
OUTAGE = 20.0  # seconds
CONFIGS = {
    "bf16": {"format": "BF16", "max_steps": 300, "batch_size": 8},
    "e4m3": {"format": "E4M3", "max_steps": 2400, "batch_size": 8},
}


@dataclass(frozen=True)
class Survivor:
    home: Path
    interrupted: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]
    runs: dict[str, Run]
    trained_in_outage: int  # steps
    corrupted: str
    poller: Poller
    left: list[str]


def attempt(folder: Folder) -> int:
    return int(folder.read_json("run.json")["attempt"]) if folder.has("run.json") else -1


def checkpoints(run: Folder) -> list[str]:
    return [info.base_name for info in (run / "checkpoints").list()]


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survivor]:
    home = tmp_path_factory.mktemp("survivor")
    write_configs(home / "configs", CONFIGS, eval_interval=50, compile=False)
    with pytest.MonkeyPatch.context() as patch, object_store() as store:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield lose_everything(home, store)


def lose_everything(home: Path, store: ObjectStore) -> Survivor:
    """S3 refuses writes, the second node dies, the driver is told to end, a checkpoint rots; then --resume."""
    variables = environment(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), **ENVIRONMENT)
    port = free_port()
    head = ("--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0")
    worker = (f"--address=127.0.0.1:{port}", "--num-cpus=2")
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", store.uri("out"), "--wandb", "disabled"]
    command += ["--address", f"127.0.0.1:{port}", "--cpus-per-trial", "1"]
    sweep = Folder.at(store.uri("out")) / "s"
    runs = [sweep / f"{name}-s42" for name in CONFIGS]
    last = runs[-1]
    poller = Poller(sweep)

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *options], cwd=home, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    with ray_node(variables, home / "head.log", *head), ExitStack() as stack:
        lost = stack.enter_context(ray_node(variables, home / "lost.log", *worker))
        process = start("--name", "s", "--configs", "configs", "--no-baseline")
        wait_until(lambda: sweep.has("sweep.json"), process)
        stack.enter_context(polling(poller))
        wait_until(lambda: all(checkpoints(run) for run in runs), process)
        began, store.refusing = time.time(), True
        time.sleep(OUTAGE)
        ended, store.refusing = time.time(), False
        newest = checkpoints(last)[-1]
        wait_until(lambda: checkpoints(last)[-1] > newest, process)
        times = read_run(last).table("steps", ["time"])["time"].to_pylist()  # a restored trial writes them again
        lost.kill()
        killed = time.time()
        stack.enter_context(ray_node(variables, home / "spare.log", *worker))
        wait_until(lambda: attempt(last) == 1, process)
        print(f"node killed to its trial's next attempt: {time.time() - killed:.1f} s")
        process.send_signal(signal.SIGTERM)
        interrupted = complete(process)
        newest = checkpoints(last)[-1]
        content = (last / "checkpoints").read_bytes(newest)
        (last / "checkpoints").write_bytes(newest, content[: len(content) // 2])
        resumed = complete(start("--resume", "s"))
    left = [process.name() for process in processes_of(home)]
    trained = sum(began + 2 < moment < ended for moment in times)
    loaded = {run.name: run for run in list_runs(sweep)[0]}
    return Survivor(home, interrupted, resumed, loaded, trained, last.name, poller, left)


def test_the_sweep_ends_with_the_same_table_as_an_undisturbed_one(survivor: Survivor, tmp_path: Path) -> None:
    assert survivor.resumed.returncode == 0, survivor.resumed.stdout
    for name in CONFIGS:
        config = load_config(survivor.home / "configs" / f"{name}.yaml").altered(threads=1)
        run_format_experiment(config, tmp_path / "s" / f"{name}-s42")
    undisturbed, _ = list_runs(Folder.at(tmp_path / "s"))
    for ours, theirs in zip(comparison(survivor.runs.values()), comparison(undisturbed), strict=True):
        assert deterministic(ours) == deterministic(theirs)
    for run in undisturbed:
        there = survivor.runs[run.name]
        for metric in ("loss", "validation_loss", "gradient_norm", "stall_rate"):
            assert there.table("steps", [metric])[metric].equals(run.table("steps", [metric])[metric]), metric


_OF_THE_MACHINE = ("tokens_per_second", "seconds", "run", "baseline", "cpus", "gpus")


def deterministic(row: Row) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in _OF_THE_MACHINE}


def test_trials_train_on_while_s3_refuses_for_20_s(survivor: Survivor) -> None:
    assert survivor.trained_in_outage > 20
    events = [event for run in survivor.runs.values() for event in read_events(run)]
    lasted = [event.detail["seconds"] for event in events if event.kind == "storage_outage"]
    assert any(OUTAGE - 5 < seconds < OUTAGE + 60 for seconds in lasted)


def test_a_trial_whose_node_dies_goes_on_elsewhere(survivor: Survivor) -> None:
    assert "the trial's process died; starts again from its last checkpoint" in survivor.interrupted.stdout


def test_sigterm_ends_the_driver_in_order_and_says_how_to_go_on(survivor: Survivor) -> None:
    assert survivor.interrupted.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in survivor.interrupted.stdout and "--resume s" in survivor.interrupted.stdout


def test_a_rotten_checkpoint_is_passed_over_and_said_so(survivor: Survivor) -> None:
    events = read_events(survivor.runs[survivor.corrupted])
    fallback = [event for event in events if event.kind == "checkpoint_fallback"]
    assert len(fallback) == 1 and fallback[0].detail["resumed_from_step"] > 0


def test_the_results_were_readable_without_a_gap_at_every_moment(survivor: Survivor) -> None:
    assert survivor.poller.reads > 10
    assert not survivor.poller.problems


def test_no_process_is_left(survivor: Survivor) -> None:
    assert not survivor.left
