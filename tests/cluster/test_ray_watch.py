"""Two sweeps through a real Ray that are watched badly: one whose Ray is killed while keys lie in its environment, one
whose reader goes, whose output knows ASCII alone, and whose collapse under an intervention is copied to W&B."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from altgrad.compare import comparison
from altgrad.compare.rescue import rescue_matrix
from altgrad.results import Run, list_runs
from altgrad.storage.folder import Folder
from tests.servers.object_store import KEYS
from tests.servers.polling import PATIENCE, SOON, wait_for, wait_for_content, wait_until
from tests.servers.ray_nodes import environment
from tests.servers.sweep_process import processes_of, write_configs

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SECRETS = KEYS | {"AWS_SESSION_TOKEN": "t0" * 20, "WANDB_API_KEY": "p" * 40, "RAY_AUTH_TOKEN": "d5" * 32}
SECRETS |= {"ALTGRAD_NOTIFY": "http://127.0.0.1:9/hook?token=hunter2hunter2"}
COMMAND = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", "out", "--name", "s", "--max-concurrent", "2"]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder for temporary files whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Killed:
    code: int
    output: str
    written: dict[Path, bytes]  # everything that its processes had written by then, their temporary files included
    modes: dict[Path, int]  # of altgrad's folders right below TMPDIR
    left: list[psutil.Process]


def contents(place: Path) -> Iterator[tuple[Path, bytes]]:
    """All files below a folder in which others write and delete."""
    for folder, _, names in os.walk(place):
        for path in (Path(folder, name) for name in names):
            with suppress(OSError):  # gone meanwhile
                if path.is_file():  # no socket
                    yield path, path.read_bytes()


@pytest.fixture(scope="module", params=["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> Killed:
    home = tmp_path_factory.mktemp("killed")
    configs = {"a": {"format": "BF16", "max_steps": 50000}, "b": {"format": "E4M3", "max_steps": 50000}}
    write_configs(home / "configs", configs, eval_batches=1, compile=False)
    variables = environment(home, TMPDIR=str(scratch), **SECRETS)
    process = subprocess.Popen(
        [*COMMAND, "--configs", "configs"], cwd=home, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: len({path.parent for path in home.glob("out/s/*/checkpoints/step*")}) == 2, process)
        written = dict(contents(scratch)) | dict(contents(home))
        modes = {path: path.stat().st_mode & 0o777 for path in scratch.glob("altgrad-*")}
        family = psutil.Process(process.pid).children(recursive=True)
        for child in family:
            if child.name() == request.param:
                child.kill()
        output, _ = process.communicate(timeout=SOON)
    finally:
        process.kill()
    _, left = psutil.wait_procs(family, timeout=SOON)
    wait_for(lambda: not processes_of(home))  # a service of W&B's is nobody's child, and holds the folder's lock
    return Killed(process.returncode, output, written, modes, left)


def test_the_death_of_ray_ends_a_sweep_with_one_line_the_command_that_goes_on_and_its_own_code(killed: Killed) -> None:
    assert killed.code == 3
    last = killed.output.strip().splitlines()[-2:]
    assert last[0].startswith("Ray's ") and " died (process " in last[0] and last[0].endswith("Go on with:")
    assert "--resume s" in last[1]
    assert "Traceback" not in killed.output and "Last 20 lines" not in killed.output
    assert not killed.left


def test_no_secret_is_in_anything_that_the_processes_of_a_sweep_write(killed: Killed) -> None:
    assert any("session_" in str(path) for path in killed.written), "Ray's session folder was looked at"
    secrets = [value.encode() for name, value in SECRETS.items() if name != "ALTGRAD_NOTIFY"] + [b"hunter2hunter2"]
    for path, content in [*killed.written.items(), (Path("log"), killed.output.encode())]:
        assert not [secret for secret in secrets if secret in content], path


def test_temporary_files_are_below_tmpdir_and_nobody_else_can_read_them(killed: Killed) -> None:
    assert killed.modes and set(killed.modes.values()) == {0o700}


@dataclass(frozen=True)
class Unwatched:
    code: int
    home: Path
    runs: dict[str, Run]
    log: str


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> Unwatched:
    home = tmp_path_factory.mktemp("unwatched")
    hopeless = {"format": "E2M5", "max_steps": 60, "never_learned_fraction": 0.2, "never_learned_margin": 5.0}
    write_configs(home / "configs", {"hopeless": hopeless}, eval_batches=1, compile=False)
    variables = environment(home, TMPDIR=str(scratch), PYTHONIOENCODING="ascii", WANDB_PROJECT="team/proj")
    command = " ".join([*COMMAND, "--configs", "configs", "--no-baseline", "--interventions", "none", "clip"])
    line = f"{command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=home, env=variables, capture_output=True, timeout=PATIENCE)
    runs, broken = list_runs(Folder.at(home / "out" / "s"))
    assert not broken
    log = home / "out" / "s" / "sweep.log"
    return Unwatched(done.returncode, home, {run.name: run for run in runs}, log.read_text() if log.exists() else "")


def test_a_sweep_without_a_reader_goes_on_to_its_end_and_says_so_in_its_log(unwatched: Unwatched) -> None:
    assert unwatched.code == 0
    assert "BrokenPipeError" in unwatched.log and "ended with exit code 0" in unwatched.log
    assert (unwatched.home / "out" / "s" / "comparison.md").exists()


def test_a_collapse_under_an_intervention_is_one_attempt_and_counts_in_the_rescue_matrix(unwatched: Unwatched) -> None:
    assert {name: run.status for name, run in unwatched.runs.items()} == {
        "hopeless-s42": "collapsed",
        "hopeless-s42+clip": "collapsed",
    }
    assert {run.info["attempt"] for run in unwatched.runs.values()} == {0}
    matrix = rescue_matrix(comparison(list(unwatched.runs.values())))
    assert {key[2]: (cell.survived, cell.ended) for key, cell in matrix.items()} == {"none": (0, 1), "clip": (0, 1)}


def test_its_copy_for_w_and_b_is_complete(unwatched: Unwatched) -> None:
    for run in unwatched.runs:
        [file] = (unwatched.home / "out" / "s" / run / "wandb").glob("offline-run-*/*.wandb")
        wait_for_content(file, b"failure_report.md")  # its service may outlive the run for a moment


def test_what_a_killed_sweep_left_the_next_one_has_removed(killed: Killed, unwatched: Unwatched, scratch: Path) -> None:
    assert not [path for path in scratch.iterdir() if path.name.startswith("altgrad-")], os.listdir(scratch)


SIGTERM_TO_ITSELF = """
import os, signal, time
from tune.cluster.ray_session import local_ray
from tune.plan.resources.machine import Machine
from tune.run.interrupts import Interrupted, Interrupts

try:
    with Interrupts(), local_ray(Machine(1, 0, "no GPU")):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
except Interrupted as error:
    print(f"ours: {error.signal.name}")
"""


def test_sigterm_is_ours_after_a_private_ray_has_started(scratch: Path) -> None:
    """Ray puts a handler of its own there, which prints the state of the processor and ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", SIGTERM_TO_ITSELF], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE,
        env=environment(scratch),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ours: SIGTERM\n"), done.stderr
