"""Runs and sweeps on `gs://`: pyarrow's own client against a real server on loopback."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from altgrad.compare import comparison
from altgrad.events import read_events
from altgrad.results import Run, list_runs, list_sweeps, read_run
from altgrad.storage import Folder
from altgrad.training import TrainConfig, run_format_experiment
from altgrad.training.outcome import Report
from tests.google_store import BUCKET, google_store
from tests.ray_nodes import environment, free_port

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "model": "micro", "batch_size": 4, "max_steps": 20, "eval_interval": 10, "eval_batches": 2,
    "diagnostic_interval": 10, "checkpoint_interval": 5, "warmup_steps": 5, "threads": 1, "compile": False,
}  # fmt: skip
Location = Callable[[str], str]


@pytest.fixture(scope="module")
def at() -> Iterator[Location]:
    """Location of a folder in the bucket."""
    with google_store() as options:
        yield lambda prefix: f"gs://{BUCKET}/{prefix}?{options}"


def losses(run: Run) -> list[Any]:
    return run.table("steps", ["loss", "validation_loss"]).select(["step", "loss", "validation_loss"]).to_pylist()


def test_a_location_survives_being_printed_and_read_again(at: Location) -> None:
    folder = Folder.at(at("a/b")) / "c"
    folder.write_bytes("x", b"content")
    again = Folder.at(str(folder))
    assert again.path == "bucket/a/b/c" and again.read_bytes("x") == b"content"


def test_folders_are_listed_that_nothing_but_their_files_says_are_there(at: Location) -> None:
    root = Folder.at(at("listed"))
    (root / "run" / "steps").write_bytes("part-0", b"0")
    (root / "run").write_bytes("run.json", b"{}")
    root.write_bytes("sweep.json", b"{}")
    (Folder.at(at("")) / "listed-too").write_bytes("x", b"")
    assert [(info.base_name, info.type.name) for info in root.list()] == [("run", "Directory"), ("sweep.json", "File")]
    assert [info.base_name for info in (root / "run").list()] == ["run.json", "steps"]
    assert [info.path for info in root.list(recursive=True)] == [
        f"{BUCKET}/listed/{name}" for name in ("run/run.json", "run/steps/part-0", "sweep.json")
    ]
    assert (root / "absent").list() == [] and not root.has("run") and root.has("sweep.json")


def test_a_run_on_gs_is_bit_for_bit_the_run_on_disk_and_resumes_there(at: Location, tmp_path: Path) -> None:
    config = TrainConfig(format="E4M3", **SMALL)
    folder = Folder.at(at("sweep")) / "run"

    def interrupt(report: Report) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_format_experiment(config, folder, report=interrupt, report_interval=7)
    run_format_experiment(config, folder)
    run_format_experiment(config, tmp_path / "disk")
    runs, broken = list_runs(Folder.at(at("sweep")))
    assert not broken and [run.name for run in runs] == ["run"]
    assert runs[0].status == "completed" and runs[0].info["attempt"] == 1
    restore = [event for event in read_events(runs[0]) if event.kind == "restore"]
    assert [event.detail["from_step"] for event in restore] == [5]
    assert losses(runs[0]) == losses(read_run(Folder.at(tmp_path / "disk")))
    assert comparison(runs)[0].step == 20


def sweep(home: Path, results: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", results, "--wandb", "disabled", *options]
    return subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_sweep_writes_to_gs_and_is_resumed_there(at: Location, tmp_path: Path) -> None:
    settings = [f"{name}={value}" for name, value in SMALL.items() if name not in ("threads", "model", "max_steps")]
    trials = ["--formats", "E4M3", "--model", "micro", "--max-steps", "20", "--set", *settings]
    done = sweep(tmp_path, at("sweeps"), "--name", "s", *trials)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [found.name for found in list_sweeps(Folder.at(at("sweeps")))] == ["s"]
    folder = Folder.at(at("sweeps")) / "s"
    runs, broken = list_runs(folder)
    assert not broken and {run.status for run in runs} == {"completed"} and len(runs) == 2
    before = losses(runs[1])
    (folder / runs[1].name).delete("end.json")
    again = sweep(tmp_path, at("sweeps"), "--resume", "s")
    assert again.returncode == 0, again.stdout + again.stderr
    run = read_run(folder / runs[1].name)
    assert run.status == "completed" and run.info["attempt"] == 1 and losses(run) == before


@pytest.mark.parametrize("options", ["", "&anonymous=true"], ids=["no credentials", "nothing listens"])
def test_a_store_out_of_reach_is_one_line_within_15_seconds(options: str, tmp_path: Path) -> None:
    results = f"gs://bucket/prefix?endpoint_override=127.0.0.1:{free_port()}&scheme=http{options}"
    started = time.monotonic()
    done = sweep(tmp_path, results, "--formats", "E4M3", "--name", "x")
    assert time.monotonic() - started < 15
    assert done.returncode == 2 and done.stderr.startswith(f"sweep.py: error: --results {results}: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_bucket_is_an_error_not_a_new_bucket(at: Location) -> None:
    nowhere = Folder.at(at("x").replace(f"gs://{BUCKET}/", "gs://no-such-bucket/"))
    with pytest.raises((OSError, pa.ArrowException)):
        nowhere.write_bytes("x", b"")


def test_an_unknown_option_of_a_location_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown option endpoint; known: anonymous, endpoint_override, scheme"):
        Folder.at("gs://bucket/prefix?endpoint=127.0.0.1")
