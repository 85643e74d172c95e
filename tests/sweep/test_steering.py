"""One sweep through Ray that is steered from outside: a hanging worker, a stop request, a webhook, a full memory."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from altgrad.config.train_config import load_config
from altgrad.results import Run, list_runs, read_run
from altgrad.results.stop_request import request_stop
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.servers.object_store import KEYS
from tests.servers.polling import PATIENCE, SOON, Poller, polling, wait_until
from tests.servers.ray_nodes import environment
from tests.servers.sweep_process import processes_of
from tune.run.trainable import REPORT_INTERVAL

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SMALL = {"model": "micro", "batch_size": 4, "warmup_steps": 5, "eval_interval": 20, "eval_batches": 1}
SMALL |= {"diagnostic_interval": 20, "checkpoint_interval": 20, "compile": False}
PLANTED = KEYS | {"WANDB_API_KEY": "p" * 40, "RAY_AUTH_TOKEN": "d5" * 32}


class Hook(http.server.BaseHTTPRequestHandler):
    bodies: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@dataclass(frozen=True)
class Steered:
    home: Path
    code: int
    output: str
    runs: dict[str, Run]
    poller: Poller
    left: list[str]


def the_worker(home: Path) -> psutil.Process:
    """The process of the one trial that trains."""
    workers = [p for p in processes_of(home) if p.name().startswith("ray::ImplicitFunc")]
    assert len(workers) == 1, workers
    return workers[0]


def trains(run: Path) -> bool:
    """Whether a run has come to its first checkpoint."""
    return any((run / "checkpoints").glob("step*"))


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Steered:
    """Trials one after another: one hangs and recovers, one is stopped, one eats all memory, one never learns."""
    home = tmp_path_factory.mktemp("steered")
    configs: dict[str, dict[str, Any]] = {
        "a_hangs": {"format": "BF16", "max_steps": 300, "batch_size": 16},
        "b_stopped": {"format": "E4M3", "max_steps": 15000, "batch_size": 1},
        "c_memory": {"format": "E5M2", "max_steps": 20, "batch_size": 4, "n_embd": 1048576, "n_head": 1},
        "d_hopeless": {"format": "E2M5", "max_steps": 60, "never_learned_fraction": 0.2, "never_learned_margin": 5.0},
    }
    (home / "configs").mkdir()
    for name, fields in configs.items():
        (home / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(SMALL | fields))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--configs", "configs", "--no-baseline"]
    command += ["--results", "out", "--name", "s", "--max-concurrent", "1", "--stall-timeout", "20", "--retries", "2"]
    command += ["--cpus-per-trial", "1", "--notify", f"http://127.0.0.1:{server.server_port}/hook?token=hunter2hunter2"]
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_", "AWS_"))}
    process = subprocess.Popen(
        command, cwd=home, env=keep | PLANTED | {"HOME": str(home)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    out = home / "out" / "s"
    poller = Poller(Folder.at(out))
    try:
        wait_until((out / "sweep.json").exists, process)
        with polling(poller):
            hangs, stopped = out / "a_hangs-s42", out / "b_stopped-s42"
            wait_until(lambda: trains(hangs), process)
            the_worker(home).send_signal(signal.SIGSTOP)
            wait_until(lambda: read_run(Folder.at(hangs)).info["attempt"] == 1, process)
            wait_until(lambda: trains(stopped), process)
            request_stop(Folder.at(stopped))
            output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        server.shutdown()
    runs, _ = list_runs(Folder.at(out))
    _, left = psutil.wait_procs(processes_of(home), timeout=SOON)
    return Steered(home, process.returncode, output, {r.name: r for r in runs}, poller, [p.name() for p in left])


def test_a_hanging_trial_is_killed_and_ends_bit_for_bit_like_an_undisturbed_one(
    steered: Steered, tmp_path: Path
) -> None:
    assert "a_hangs-s42  no report for 20 s: its process is killed" in steered.output
    run = steered.runs["a_hangs-s42"]
    assert run.status == "completed" and run.info["attempt"] == 1
    config = load_config(steered.home / "configs" / "a_hangs.yaml").altered(threads=1)
    alone = run_format_experiment(config, tmp_path / "alone")
    assert run.table("steps", ["loss"])["loss"].equals(read_run(alone.folder).table("steps", ["loss"])["loss"])


def test_a_stop_request_ends_one_trial_and_the_others_go_on(steered: Steered) -> None:
    run = steered.runs["b_stopped-s42"]
    assert run.status == "stopped" and run.end is not None
    assert run.end["summary"]["reason"] == "stop requested" and 0 < run.end["summary"]["steps"] < 15000
    assert steered.runs["d_hopeless-s42"].status == "collapsed"


def test_a_trial_that_runs_out_of_memory_is_tried_twice_and_fails_with_the_reason(steered: Steered) -> None:
    run = steered.runs["c_memory-s42"]
    assert run.status == "failed" and run.end is not None and "allocate memory" in run.end["summary"]["error"]
    assert steered.output.count("c_memory-s42  starts\n") == 2, steered.output
    assert steered.code == 1 and "failed: c_memory-s42: " in steered.output


def test_the_webhook_hears_of_collapse_failure_and_end(steered: Steered) -> None:
    told = {(body["event"], body.get("run")): body for body in Hook.bodies if body["event"] != "warning"}
    assert told.keys() == {("collapsed", "d_hopeless-s42"), ("failed", "c_memory-s42"), ("end", None)}
    assert told[("collapsed", "d_hopeless-s42")]["verdict"]["rule"] == "never_learned"
    assert told[("end", None)]["runs"] == {"completed": 1, "stopped": 1, "failed": 1, "collapsed": 1}


def test_the_results_were_readable_at_every_moment(steered: Steered) -> None:
    assert steered.poller.reads > 20
    assert not steered.poller.problems


def test_no_process_is_left_behind(steered: Steered) -> None:
    assert not steered.left


def test_no_secret_reaches_a_file_or_the_log(steered: Steered) -> None:
    secrets = [value.encode() for value in (*PLANTED.values(), "hunter2hunter2")]
    written = {path: path.read_bytes() for path in (steered.home / "out").rglob("*") if path.is_file()}
    assert written
    for place, content in [*written.items(), (Path("log"), steered.output.encode())]:
        assert not [secret for secret in secrets if secret in content], place


# A whole sweep that is asked to stop while two trials train and one waits


@dataclass(frozen=True)
class StoppedSweep:
    asked: subprocess.CompletedProcess[str]
    requested: float  # when the request was there
    code: int
    output: str
    runs: dict[str, Run]
    resumed: subprocess.CompletedProcess[str]
    after_resume: dict[str, Run]


@pytest.fixture(scope="module")
def stopped_sweep(tmp_path_factory: pytest.TempPathFactory) -> StoppedSweep:
    home = tmp_path_factory.mktemp("stopped")
    (home / "configs").mkdir()
    for name in ("a_bf16", "b_e4m3", "c_waits"):
        fields = {"format": "E5M2" if name == "c_waits" else name[2:].upper(), "max_steps": 50000, "batch_size": 1}
        (home / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(SMALL | fields))
    out = home / "out" / "s"
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", "out", "--wandb", "disabled"]
    process = subprocess.Popen(
        [*command, "--configs", "configs", "--no-baseline", "--name", "s", "--max-concurrent", "2"],
        cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: trains(out / "a_bf16-s42") and trains(out / "b_e4m3-s42"), process)
        asked = altgrad(home, "stop", str(out))
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    requested = (out / "stop.json").stat().st_mtime
    runs = {run.name: run for run in list_runs(Folder.at(out))[0]}
    resumed = subprocess.run(
        [*command, "--resume", "s"], cwd=home, env=environment(home), capture_output=True, text=True, timeout=PATIENCE
    )
    after = {run.name: run for run in list_runs(Folder.at(out))[0]}
    return StoppedSweep(asked, requested, process.returncode, output, runs, resumed, after)


def altgrad(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = environment(home, PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, "-m", "altgrad", *arguments], cwd=home, env=variables, capture_output=True, text=True
    )


def test_a_stop_request_to_a_sweep_ends_every_trial_within_one_report(stopped_sweep: StoppedSweep) -> None:
    assert stopped_sweep.asked.returncode == 0, stopped_sweep.asked.stderr
    for name in ("a_bf16-s42", "b_e4m3-s42"):
        run = stopped_sweep.runs[name]
        times = run.table("steps", ["time"])["time"].to_pylist()
        assert 0 <= sum(moment > stopped_sweep.requested for moment in times) <= REPORT_INTERVAL
        assert run.end is not None and run.end["summary"]["steps"] == len(times) < 50000
    assert not stopped_sweep.runs["c_waits-s42"].table("steps").num_rows
    for run in stopped_sweep.runs.values():
        assert run.status == "stopped" and run.end is not None and run.end["summary"]["reason"] == "stop requested"


def test_a_stopped_sweep_shows_its_table_and_succeeds(stopped_sweep: StoppedSweep) -> None:
    assert stopped_sweep.code == 0, stopped_sweep.output
    table = stopped_sweep.output.split("Comparison")[1]
    assert all(name in table for name in stopped_sweep.runs) and table.count(" stopped ") == 3


def test_resume_leaves_a_stopped_sweep_alone(stopped_sweep: StoppedSweep) -> None:
    assert stopped_sweep.resumed.returncode == 0 and "nothing left to train" in stopped_sweep.resumed.stdout
    assert [run.end for run in stopped_sweep.after_resume.values()] == [r.end for r in stopped_sweep.runs.values()]
