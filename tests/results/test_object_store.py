"""Runs and sweeps on an object store: a real S3 server on loopback, also one that refuses writes for a while."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import moto.settings
import pyarrow as pa
import pytest

import altgrad.storage.patience
from altgrad.experiment.outcome import Report
from altgrad.results import RunWriter, read_events, read_run
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from tests.servers.object_store import ENVIRONMENT, ObjectStore, object_store
from tests.servers.polling import PATIENCE, SOON
from tests.servers.ray_nodes import environment
from tests.servers.store_claims import SMALL, check_interrupted_run, check_printed_location, check_resumed_sweep
from tests.support.results.generated_results import InventedRun
from tests.support.runs.small_runs import losses

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return server


def test_a_location_survives_being_printed_and_read_again(store: ObjectStore) -> None:
    check_printed_location(store.uri("a/b"), "bucket/a/b/c")
    assert [info.base_name for info in (Folder.at(store.uri("a")) / "b").list()] == ["c"]


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_number_sign_is_a_character_of_a_name_and_hides_no_option(scheme: str) -> None:
    location = f"{scheme}://bucket/exp#1/run#2?endpoint_override=127.0.0.1:9&scheme=http"
    folder = Folder.at(location)
    assert (folder.path, folder.name, str(folder)) == ("bucket/exp#1/run#2", "run#2", location)
    with pytest.raises(ValueError, match="unknown option nonsense"):
        Folder.at(f"{scheme}://bucket/exp#1?nonsense=1")


def test_a_number_sign_in_a_file_uri_is_a_character_of_a_name(tmp_path: Path) -> None:
    Folder.at(f"file://{tmp_path}/exp#1").write_bytes("a", b"x")
    assert (tmp_path / "exp#1" / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "location", ["", "  ", "/", "//", "/..", "s3://", "s3:///", "gs://", "file:///", "a\0b", "x" * 300], ids=repr
)
def test_a_location_of_nothing_or_everything_is_refused(location: str) -> None:
    with pytest.raises(ValueError):
        Folder.at(location)


def test_credentials_in_a_location_are_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="credentials") as caught:
        Folder.at("s3://AKIAKEY:hunter2@bucket/prefix")
    assert "hunter2" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


def test_an_unknown_option_of_a_location_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown option endpoint; known: endpoint_override"):
        Folder.at("s3://bucket/prefix?endpoint=127.0.0.1")


def test_a_run_on_s3_is_bit_for_bit_the_run_on_disk_and_resumes_there(store: ObjectStore, tmp_path: Path) -> None:
    check_interrupted_run(store.uri("sweep"), tmp_path / "disk")


def sweep(store: ObjectStore, home: Path, *options: str, within: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", store.uri("sweeps"), *options]
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    variables = keep | ENVIRONMENT | {"HOME": str(home)}
    return subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=within)


def test_a_sweep_writes_to_s3_and_is_resumed_there(store: ObjectStore, tmp_path: Path) -> None:
    check_resumed_sweep(store.uri("sweeps"), lambda *options: sweep(store, tmp_path, *options))


def test_a_run_trains_on_while_s3_refuses_writes_and_loses_nothing(store: ObjectStore, tmp_path: Path) -> None:
    config = TrainConfig(format="E4M3", **SMALL | {"max_steps": 60})
    folder = Folder.at(store.uri("refused")) / "run"
    during: list[int] = []

    def report(news: Report) -> None:
        if news.step == 10:
            store.refusing = True
        if store.refusing:
            during.append(news.step)
        if news.step == 40:
            threading.Timer(3.0, setattr, (store, "refusing", False)).start()

    run_format_experiment(config, folder, report=report, report_interval=10)
    run_format_experiment(config, tmp_path / "disk")
    run = read_run(folder)
    assert store.refused > 0 and during[:4] == [10, 20, 30, 40]
    assert run.status == "completed"
    assert losses(run) == losses(read_run(Folder.at(tmp_path / "disk")))
    assert "storage_outage" in [event.kind for event in read_events(run)]


def test_storage_that_refuses_for_good_fails_the_run_with_one_line(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altgrad.storage.patience, "_FIRST_DELAY", 0.1)
    folder = Folder.at(store.uri("dead")) / "run"
    writer = RunWriter(folder, flush_seconds=0.0)
    writer.start({"run": "run", "config": InventedRun().config.model_dump()})
    writer._outage = altgrad.storage.patience.Outage(folder, limit=1.0)
    store.refusing = True
    try:
        with pytest.raises(OSError, match=r"dead/run.*: storage refused for \d+ s: .*") as caught:
            for step in range(1, 200):
                writer.step({"step": step, "loss": 1.0})
                time.sleep(0.02)
    finally:
        store.refusing = False
    assert "\n" not in str(caught.value)
    assert not read_run(folder).table("steps").num_rows  # nothing half-written


def test_a_full_disk_costs_no_row_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(Folder.at(tmp_path / "run"), flush_seconds=0.0)
    writer.start({"run": "run", "config": InventedRun().config.model_dump()})
    replace, full = os.replace, [True]

    def disk(source: str, target: str) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", disk)
    for step in range(1, 6):
        writer.step({"step": step, "loss": float(step)})
    assert not writer.flush()
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["run.json"]
    full[0] = False
    writer.end("completed", None, {})
    assert read_run(Folder.at(tmp_path / "run")).table("steps")["loss"].to_pylist() == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid"])
def test_an_unreachable_store_is_one_line_soon(address: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--formats", "E4M3", "--name", "x"]
    results = f"s3://bucket/prefix?endpoint_override={address}&scheme=http"
    variables = os.environ | ENVIRONMENT
    done = subprocess.run(
        [*command, "--results", results], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=SOON
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and address.split(":")[0] in done.stderr


def test_a_store_that_gives_no_permission_is_one_line_soon(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from here on it checks keys
    done = sweep(store, tmp_path, "--formats", "E4M3", "--name", "x", within=SOON)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(f"sweep.py: error: --results {store.uri('sweeps')}: ")
    assert "Key Id you provided does not exist" in done.stderr
    assert not [key for key in ENVIRONMENT.values() if key in done.stderr and "planted" in key]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no folder that even root may not write to")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--formats", "E4M3", "--results", "/sys/kernel/out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("sweep.py: error: --results /sys/kernel/out: ")


def test_a_missing_bucket_is_an_error_not_a_new_bucket(store: ObjectStore) -> None:
    nowhere = Folder.at(store.uri("x").replace("s3://bucket", "s3://no-such-bucket"))
    with pytest.raises((OSError, pa.ArrowException), match=r"(?i)bucket"):
        nowhere.write_bytes("x", b"")
