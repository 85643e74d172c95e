"""One process at a time works in a folder; the second is told who; a dead one is succeeded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from altgrad.__main__ import main
from altgrad.experiment.outcome import Report
from altgrad.results import Lease, LeaseHeld, RunWriter, lease, list_runs, read_lease, read_run, read_table
from altgrad.show.sweep_status import goes_on, sweep_state
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from tests.servers.polling import PATIENCE, wait_for
from tests.support.generated_results import InventedRun
from tune.plan.options import SweepOptions
from tune.plan.sweep_record import create_sweep, open_sweep, write_never_started
from tune.plan.trial import SweepPlan, Trial
from tune.run.end_records import EndRecords
from tune.run.stopper import CollapseStopper
from tune.sweep import _show_results
from tune.sweep import main as sweep_main

SMALL = TrainConfig(
    format="E4M3", model="micro", batch_size=4, max_steps=40, warmup_steps=5, eval_interval=40, eval_batches=1,
    diagnostic_interval=20, checkpoint_interval=10, threads=1, compile=False,
)  # fmt: skip
HOLDER = """
import sys, time
from altgrad.results import Lease
from altgrad.storage.folder import Folder
Lease.take(Folder.at(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole seconds, and no time goes by for leases."""
    now, clock = float(int(time.time())), SimpleNamespace(**vars(time))
    clock.time = lambda: now
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr(lease, "_storage_time", lambda folder, other: now)


def elsewhere(folder: Folder, age: float = 0.0, **fields: Any) -> None:
    """A lease that a process on another machine renewed so many seconds ago."""
    now = lease.time.time() - age
    told = {"owner": "a" * 32, "host": "other", "pid": 1, "process": "boot 7", "since": now - 60, "renewed": now}
    folder.write_json("lease.json", told | {"pace": 10.0, "group": None} | fields)
    os.utime(Path(folder.path) / "lease.json", (now, now))


def test_the_second_is_told_who_holds_the_folder_since_when_and_until_when(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(LeaseHeld) as caught:
            Lease.take(Folder.at(tmp_path))
        said = str(caught.value)
        assert said.count("\n") == 0 and f"process {process.pid} on " in said
        assert time.strftime("since %Y-%m-%d") in said and "runs out in" in said and str(tmp_path) in said
    finally:
        process.kill()
        process.wait()


def test_a_folder_made_for_a_lease_alone_goes_with_it_and_one_that_was_there_or_holds_something_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "new/a/b", "there/c"):
        Lease.take(Folder.at(tmp_path / name)).release()
        assert [path.name for path in tmp_path.rglob("*")] == ["there"], name
    kept = Lease.take(Folder.at(tmp_path / "new/a/b"))
    (tmp_path / "new/a/results").touch()
    kept.release()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "new", "results", "there"]


def test_a_newcomer_that_waited_for_a_folder_that_was_removed_meanwhile_makes_it_anew(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    first = Lease.take(folder)
    with lease._locked(folder):
        taken: list[Lease] = []
        newcomer = threading.Thread(target=lambda: taken.append(Lease.take(folder)))
        newcomer.start()
        time.sleep(0.3)
        shutil.rmtree(folder.path)
    newcomer.join()
    first.release()
    assert taken and lease._owner(folder) == taken[0].owner
    taken[0].release()


def test_a_killed_owner_on_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    Lease.take(Folder.at(tmp_path)).release()  # which does not wait, or it would be refused
    assert read_lease(Folder.at(tmp_path)) is None


def test_a_stopped_owner_on_this_machine_still_holds_its_folder(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        found = json.loads((tmp_path / "lease.json").read_text()) | {"renewed": time.time() - 3600}
        Folder.at(tmp_path).write_json("lease.json", found)
        with pytest.raises(LeaseHeld):
            Lease.take(Folder.at(tmp_path))
    finally:
        process.kill()
        process.wait()


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    mine = Lease(Folder.at(tmp_path), None)
    old = mine._fields | {"renewed": time.time(), "process": f"{lease._system()} 1"}
    Folder.at(tmp_path).write_json("lease.json", old)
    Lease.take(Folder.at(tmp_path)).release()


@pytest.mark.parametrize(
    ("age", "life"), [(0, "running"), (29, "running"), (30, "silent"), (59, "silent"), (60, "dead")]
)
def test_an_owner_elsewhere_is_judged_by_its_own_pace(age: float, life: str, tmp_path: Path, frozen: None) -> None:
    folder = Folder.at(tmp_path)
    elsewhere(folder, age)
    found = read_lease(folder)
    assert found is not None and lease.life_of(folder, found) == life
    elsewhere(folder, 10 * age, pace=100.0)
    found = read_lease(folder)
    assert found is not None and lease.life_of(folder, found) == life
    elsewhere(folder, age)
    if life == "dead":
        Lease.take(folder).release()
    else:
        with pytest.raises(LeaseHeld, match="process 1 on other works in it"):
            Lease.take(folder)


def test_an_owner_elsewhere_whose_clock_is_wrong_is_judged_by_the_storage(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for wrong in (-7200.0, 7200.0):
        elsewhere(folder)
        stamp = os.stat(tmp_path / "lease.json")
        told = json.loads((tmp_path / "lease.json").read_text())
        folder.write_json("lease.json", told | {"renewed": time.time() + wrong})
        os.utime(tmp_path / "lease.json", (stamp.st_mtime, stamp.st_mtime))
        with pytest.raises(LeaseHeld):
            Lease.take(folder)


def test_of_many_that_come_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    elsewhere(Folder.at(tmp_path), age=100)
    taken: list[Lease] = []
    refused: list[str] = []

    def come() -> None:
        try:
            taken.append(Lease.take(Folder.at(tmp_path)))
        except LeaseHeld as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 11)
    taken[0].release()


@pytest.mark.parametrize("content", [b"", b"null", b"{", b'{"owner": 1}', b"\0" * 100])
def test_a_damaged_lease_holds_nobody_off(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_bytes(content)
    Lease.take(Folder.at(tmp_path)).release()


def test_an_owner_that_was_succeeded_notices_and_storage_that_refuses_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PACE", 0.05)
    held, refusing, refused = Lease.take(Folder.at(tmp_path)), True, 0
    read = Folder.read_json

    def refuse(folder: Folder, name: str) -> dict[str, Any]:
        nonlocal refused
        if refusing:
            refused += 1
            raise OSError("503")
        return read(folder, name)

    def renewed() -> float:
        found = read_lease(Folder.at(tmp_path))
        assert found is not None
        return float(found["renewed"])

    monkeypatch.setattr(Folder, "read_json", refuse)
    wait_for(lambda: refused > 3)
    held.check()
    refusing = False
    before = renewed()
    wait_for(lambda: renewed() > before)
    elsewhere(Folder.at(tmp_path))
    held._thread.join(PATIENCE)
    with pytest.raises(LeaseHeld, match="on other"):
        held.check()
    held.release()
    left = read_lease(Folder.at(tmp_path))
    assert left is not None and left["host"] == "other", "the successor's lease stays"


def test_those_of_one_sweep_succeed_each_other_at_once_others_wait(tmp_path: Path) -> None:
    elsewhere(Folder.at(tmp_path), group="sweep-1")
    with pytest.raises(LeaseHeld):
        Lease.take(Folder.at(tmp_path), "sweep-2")
    Lease.take(Folder.at(tmp_path), "sweep-1").release()


# runs


def stopped_at(step: int) -> Callable[[Report], None]:
    def report(news: Report) -> None:
        if news.step == step:
            raise KeyboardInterrupt

    return report


def test_two_that_train_one_folder_lose_no_step_and_the_second_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = Folder.at(tmp_path / "run"), []

    def second(news: Report) -> None:
        if news.step == 20:
            with pytest.raises(LeaseHeld) as caught:
                run_format_experiment(SMALL, folder)
            said.append(str(caught.value))
            assert read_run(folder).status == "running" and read_run(folder).life == "running"

    result = run_format_experiment(SMALL, folder, report=second)
    assert said and f"process {os.getpid()} on" in said[0]
    assert result.status == "completed" and read_lease(folder) is None
    assert read_table(folder, "steps")["step"].to_pylist() == list(range(1, 41))
    process = holder(tmp_path / "other")
    try:
        file = tmp_path / "config.yaml"
        file.write_text("format: E4M3\nmodel: micro\n")
        assert main(["train", str(file), "--out", str(tmp_path / "other")]) == 2
        assert f"process {process.pid} on" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def test_parts_of_two_attempts_of_one_number_have_other_names(tmp_path: Path) -> None:
    folder, names = Folder.at(tmp_path), []
    for _ in range(2):
        held = Lease.take(folder)
        writer = RunWriter(folder, attempt=1, flush_seconds=1e9, owner=held.owner)
        writer.start({"run": "a", "config": InventedRun().config.model_dump()})
        for step in range(1, 4):
            writer.step({"step": step, "loss": 1.0})
            writer.flush()
        names += [info.base_name for info in (folder / "steps").list()]
        held.release()
    assert len(set(names)) == 6
    assert read_table(folder, "steps")["step"].to_pylist() == [1, 2, 3]
    writer.end("completed", None, {})
    assert len((folder / "steps").list()) == 2, "each one's parts are merged"
    assert read_table(folder, "steps")["step"].to_pylist() == [1, 2, 3]


def test_a_run_that_was_killed_is_known_at_once_and_one_that_compiles_for_minutes_is_not_dead(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "s")
    config = InventedRun().config.model_dump()
    sweep.write_json("sweep.json", {"schema": 1, "runs": [{"run": "a", "config": config}]})
    process = holder(tmp_path / "s" / "a")
    found = read_lease(sweep / "a")
    assert found is not None
    RunWriter(sweep / "a", owner=found["owner"]).start({"run": "a", "config": config, "started": time.time() - 7200})
    assert [(state.status, state.is_silent) for state in sweep_state(sweep)] == [("running", False)]
    assert goes_on(sweep, sweep_state(sweep))
    process.kill()
    process.wait()
    assert [state.status for state in sweep_state(sweep)] == ["killed"] and not goes_on(sweep, sweep_state(sweep))
    elsewhere(sweep / "a", age=45)
    assert [(state.status, state.status_text) for state in sweep_state(sweep)] == [("running", "running, silent")]
    elsewhere(sweep / "a", age=90)
    assert [run.status for run in list_runs(sweep)[0]] == ["killed"]


def test_status_goes_on_while_the_sweep_that_will_start_the_others_is_there(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "s")
    sweep.write_json("sweep.json", {"schema": 1, "runs": [{"run": "a", "config": InventedRun().config.model_dump()}]})
    assert not goes_on(sweep, sweep_state(sweep))
    process = holder(tmp_path / "s")
    assert goes_on(sweep, sweep_state(sweep))
    process.kill()
    process.wait()
    assert not goes_on(sweep, sweep_state(sweep))


def test_a_second_resume_of_a_sweep_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("a", SMALL)
    sweep = create_sweep(SweepOptions(results=str(tmp_path), name="s"), SweepPlan((trial,)))
    process = holder(Path(sweep.folder.path))
    try:
        assert sweep_main(["--resume", "s", "--results", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"process {process.pid} on" in error
        assert sweep_main(["--resume", "s", "--results", str(tmp_path), "--dry-run"]) == 0, "looking is free"
    finally:
        process.kill()
        process.wait()
    assert open_sweep(SweepOptions(results=str(tmp_path), resume="s")).unfinished() == [trial]


# folders that go or cannot be written


def test_a_folder_that_is_removed_while_its_run_trains_is_an_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def remove(news: Report) -> None:
        if news.step == 20:
            shutil.rmtree(out)

    with pytest.raises(FileNotFoundError, match=r"run: its run\.json is gone"):
        run_format_experiment(SMALL, out, report=remove)


def test_a_run_whose_folder_cannot_be_written_is_unfinished_and_keeps_nobody_from_starting(tmp_path: Path) -> None:
    trials = (Trial("a", SMALL), Trial("b", SMALL))
    sweep = create_sweep(SweepOptions(results=str(tmp_path), name="s"), SweepPlan(trials))
    (tmp_path / "s" / "a").write_text("a file where the run's folder should be")
    assert open_sweep(SweepOptions(results=str(tmp_path), resume="s")).unfinished() == list(trials)
    told: list[str] = []
    ends = EndRecords(CollapseStopper(trials, sweep.folder), sweep.folder, "none", told.append)
    with ends._recording("a"):
        write_never_started(sweep.folder / "a", trials[0], "s")
    assert ends.refused is None and len(told) == 1 and told[0].startswith("a: its end cannot be recorded: ")


def test_a_sweep_whose_folder_was_removed_does_not_end_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("a", SMALL)
    sweep = create_sweep(SweepOptions(results=str(tmp_path), name="s"), SweepPlan((trial,)))
    shutil.rmtree(tmp_path / "s")
    (sweep.folder / "a").write_json("end.json", {"status": "completed"})  # what a run that trained on leaves
    assert _show_results(sweep, SweepOptions(results=str(tmp_path)), Console(width=200)) == 1
    shown = capsys.readouterr().out
    assert "lost: a: its run.json is gone" in shown and "its sweep.json is gone" in shown
