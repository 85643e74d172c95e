"""What surrounds a sweep and must not touch it: watchers, its log, its temporary folders, signals, its Ray."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altgrad.commands.option_fields import without_secrets
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.storage.folder import Folder
from altgrad.storage.patience import StorageRefused
from tests.servers.polling import PATIENCE, wait_for
from tune.cluster import private_folders as scratch
from tune.cluster import ray_session as cluster
from tune.cluster.ray_trial import may_pass
from tune.cluster.ray_watch import RayFailed, watched_ray
from tune.plan.inputs import check_inputs
from tune.plan.options import SweepOptions, parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trial import Trial
from tune.run.interrupts import Interrupted, Interrupts
from tune.submit import main
from tune.watch.journal import LOG, Journal
from tune.watch.watchers import Watcher

HOOKS = ["on_trial_start", "on_trial_result", "on_trial_complete", "on_trial_recover", "on_trial_error"]
NO_GPU = Machine(2, 0, "no CUDA GPU found")


class Watching:
    """Takes all calls down; does something bad in one of them."""

    def __init__(self, where: str = "", bad: Any = None) -> None:
        self.where, self.bad, self.calls = where, bad, list[str]()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            self.bad()

    def __enter__(self) -> Watching:
        self._call("__enter__")
        return self

    def __exit__(self, *error: object) -> None:
        self._call("__exit__")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda **info: self._call(name)


def followed(watching: Watching, told: list[str], patience: float = PATIENCE) -> None:
    """Send every event twice, from where Tune would."""
    with Watcher(watching, "the table", told.append, close_seconds=patience) as watcher:
        for _ in range(2):
            for hook in HOOKS:
                more = {"result": {"step": 1}} if hook == "on_trial_result" else {}
                getattr(watcher, hook)(iteration=1, trials=[], trial=SimpleNamespace(), **more)


def test_a_watcher_hears_everything_in_order() -> None:
    watching, told = Watching(), list[str]()
    followed(watching, told)
    assert watching.calls == ["__enter__", *HOOKS, *HOOKS, "__exit__"] and not told


def failing(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("where", ["__enter__", *HOOKS, "__exit__"])
@pytest.mark.parametrize("error", [ValueError("x\n[/y]"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_whatever_a_watcher_raises_is_told_once_and_the_rest_goes_on(where: str, error: BaseException) -> None:
    watching, told = Watching(where, failing(error)), list[str]()
    followed(watching, told)
    assert len(told) == 1 and type(error).__name__ in told[0] and "the sweep goes on" in told[0] and "\n" not in told[0]
    if where in HOOKS:
        assert watching.calls == ["__enter__", *HOOKS, *HOOKS, "__exit__"]


@pytest.mark.parametrize("where", ["__enter__", "on_trial_result", "__exit__"])
def test_a_watcher_that_hangs_holds_nothing_up(where: str) -> None:
    for_ever, told = threading.Event(), list[str]()
    followed(Watching(where, for_ever.wait), told, patience=0.2)
    assert len(told) == 1 and "0.2 s" in told[0]
    for_ever.set()


# its log


def test_the_log_keeps_what_was_said_before_it_had_a_folder_and_by_earlier_attempts(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        journal = Journal()
        journal.note(f"{attempt} before")
        journal.keep_in(Folder.at(tmp_path))
        journal.note(f"{attempt} \x1bafter")
    lines = [line.split("  ", 1)[1] for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines == ["first before", "first \\x1bafter", "second before", "second \\x1bafter"]


def test_a_log_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    journal = Journal()
    journal.keep_in(Folder.at(tmp_path / "file" / "sweep"))
    journal.note("lost")


# what is tried again


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("no CUDA device here"), False),
        (ConfigError("layer_formats: 'x' matches no layer"), False),
        (FileNotFoundError(2, "gone"), False),
        (PermissionError(13, "no"), False),
        (KeyError("step"), False),
        (RuntimeError("shape mismatch"), False),
        (StorageRefused("s3://b: storage refused for 300 s: 503"), True),
        (OSError(28, "No space left on device"), True),
        (ConnectionResetError(), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc.cpp] DefaultCPUAllocator: can't allocate memory"), True),
    ],
    ids=repr,
)
def test_only_what_came_from_outside_a_trial_is_tried_again(error: Exception, again: bool) -> None:
    assert may_pass(error) is again


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda"}, "device='cuda': no CUDA GPU found"),
        ({"layer_formats": {"nothing*": "E4M3"}}, "'nothing\\*' matches no layer"),
    ],
)
def test_what_can_be_known_before_ray_starts_is_refused_before(changes: dict[str, Any], words: str) -> None:
    fine = Trial("fine", TrainConfig(model="micro", layer_formats={"h.0.*": "BF16"}))
    assert check_inputs([fine], NO_GPU)
    with pytest.raises(ConfigError, match=f"bad: .*{words}"):
        check_inputs([fine, Trial("bad", TrainConfig(model="micro").altered(**changes))], NO_GPU)


# temporary folders


def test_a_temporary_folder_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch.private_folder(str(tmp_path)) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_the_next_sweep_removes_the_folders_of_dead_ones_and_no_other(tmp_path: Path) -> None:
    script = "import os, sys; from tune.cluster.private_folders import private_folder; "
    script += "c = private_folder(sys.argv[1]); c.__enter__(); "
    command = [sys.executable, "-c", script + "os.kill(os.getpid(), 9)", str(tmp_path)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    [dead] = tmp_path.iterdir()
    (tmp_path / "altgrad-of-somebody").mkdir()  # without a lock: not one of these
    (tmp_path / "altgrad-link").symlink_to(tmp_path / "altgrad-of-somebody")
    with scratch.private_folder(str(tmp_path)) as living:
        assert not dead.exists()
        with scratch.private_folder(str(tmp_path)):
            assert living.exists()
        with open(living / "lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert {path.name for path in tmp_path.iterdir()} == {"altgrad-of-somebody", "altgrad-link"}


def test_temporary_files_go_where_the_user_wants_as_far_as_sockets_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert scratch.temporary_root() == ("/tmp", None)
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    assert scratch.temporary_root() == ("/dev/shm", None)
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    assert scratch.temporary_root() == ("/var/tmp", None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "absent"))
    assert scratch.temporary_root() == ("/dev/shm", None)
    long = tmp_path / ("x" * 40)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    place, note = scratch.temporary_root()
    assert place == "/tmp" and note is not None and note.startswith("RAY_TMPDIR=") and "using /tmp" in note


# signals


def test_a_signal_before_the_trials_and_a_second_one_end_at_once_the_first_in_order() -> None:
    asked: list[signal.Signals] = []
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in the background
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)
        os.kill(os.getpid(), signal.SIGHUP)  # a closed terminal
    with Interrupts() as interrupts, interrupts.orderly(asked.append):
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: asked)
        assert asked == [signal.SIGINT]
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_a_library_swallowed_still_ends_the_sweep() -> None:
    asked: list[signal.Signals] = []
    with Interrupts() as interrupts:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)
        except KeyboardInterrupt:
            pass
        with interrupts.orderly(asked.append):
            assert asked == [signal.SIGINT]


# Ray of our own


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def too_late(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", too_late)
    words = r"^Ray did not start here: Exception: The current node timed out[^\n]*$"
    with pytest.raises(RayFailed, match=words), cluster.local_ray(NO_GPU):
        raise AssertionError("not reached")


def test_a_ray_that_lives_disturbs_nobody() -> None:
    alive = [SimpleNamespace(process=SimpleNamespace(pid=1, poll=lambda: None))]
    with watched_ray({"raylet": alive, "gcs_server": alive}, lambda which: pytest.fail(which)):
        time.sleep(0.5)


# a job on a cluster


@pytest.mark.parametrize("words", [["--notify", "http://h/secret"], ["--notify=http://h/secret"]])
def test_a_webhook_is_not_on_the_job_s_command_line(words: list[str]) -> None:
    assert parse_options(words).notify == "http://h/secret"
    assert without_secrets(["--seeds", "2", *words, "--dry-run"], SweepOptions) == ["--seeds", "2", "--dry-run"]


def test_the_webhook_reaches_the_job_by_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tune import submit

    sent: list[tuple[str, Any]] = []

    class Client:
        def submit_job(self, entrypoint: str, runtime_env: Any) -> str:
            sent.append((entrypoint, runtime_env))
            if len(sent) < 4:
                raise RuntimeError(
                    ["", "Request failed with status code 500: No available agent", "503", "refused"][len(sent)]
                )
            return "job1"

    monkeypatch.setattr(submit, "check_cluster", lambda address: None)
    monkeypatch.setattr(submit, "_direct_client", lambda address: Client())
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("ALTGRAD_NOTIFY", "http://h/secret")
    assert main(["--no-wait", "--results", str(tmp_path)]) == 0
    entrypoint, environment = sent[-1]
    assert len(sent) == 4 and "secret" not in entrypoint
    assert environment["env_vars"] == {"ALTGRAD_NOTIFY": "http://h/secret"}
