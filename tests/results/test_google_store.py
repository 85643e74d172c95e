"""Runs and sweeps on `gs://`: pyarrow's own client against a real server on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from altgrad.storage.folder import Folder
from tests.servers.google_store import BUCKET, google_store
from tests.servers.polling import PATIENCE, SOON
from tests.servers.ray_nodes import environment, free_port
from tests.servers.store_claims import check_interrupted_run, check_printed_location, check_resumed_sweep

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
Location = Callable[[str], str]


@pytest.fixture(scope="module")
def at() -> Iterator[Location]:
    """Location of a folder in the bucket."""
    with google_store() as options:
        yield lambda prefix: f"gs://{BUCKET}/{prefix}?{options}"


def test_a_location_survives_being_printed_and_read_again(at: Location) -> None:
    check_printed_location(at("a/b"), "bucket/a/b/c")


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
    check_interrupted_run(at("sweep"), tmp_path / "disk")


def sweep(home: Path, results: str, *options: str, within: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", results, *options]
    return subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=within)


@pytest.mark.slow
def test_a_sweep_writes_to_gs_and_is_resumed_there(at: Location, tmp_path: Path) -> None:
    check_resumed_sweep(at("sweeps"), lambda *options: sweep(tmp_path, at("sweeps"), *options))


@pytest.mark.parametrize("options", ["", "&anonymous=true"], ids=["no credentials", "nothing listens"])
def test_a_store_out_of_reach_is_one_line_soon(options: str, tmp_path: Path) -> None:
    results = f"gs://bucket/prefix?endpoint_override=127.0.0.1:{free_port()}&scheme=http{options}"
    done = sweep(tmp_path, results, "--formats", "E4M3", "--name", "x", "--wandb", "disabled", within=SOON)
    assert done.returncode == 2 and done.stderr.startswith(f"sweep.py: error: --results {results}: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_bucket_is_an_error_not_a_new_bucket(at: Location) -> None:
    nowhere = Folder.at(at("x").replace(f"gs://{BUCKET}/", "gs://no-such-bucket/"))
    with pytest.raises((OSError, pa.ArrowException)):
        nowhere.write_bytes("x", b"")


def test_an_unknown_option_of_a_location_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown option endpoint; known: anonymous, endpoint_override, scheme"):
        Folder.at("gs://bucket/prefix?endpoint=127.0.0.1")
