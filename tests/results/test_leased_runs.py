"""Runs and sweeps in leased folders: no step is lost, killed ones are known at once; folders that go while in use."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from altgrad.__main__ import main
from altgrad.experiment.outcome import Report
from altgrad.results import Lease, LeaseHeld, RunWriter, list_runs, read_lease, read_run, read_table
from altgrad.show.sweep_status import goes_on, sweep_state
from altgrad.storage.folder import Folder
from altgrad.training import TrainConfig, run_format_experiment
from tests.servers.lease_holders import elsewhere, holder
from tests.support.results.generated_results import InventedRun
from tune.plan.options import SweepOptions
from tune.plan.sweep_record import create_sweep, open_sweep, write_never_started
from tune.plan.trial import SweepPlan, Trial
from tune.run.end_records import EndRecords
from tune.run.stopper import CollapseStopper
from tune.sweep import _failures, _show_results
from tune.sweep import main as sweep_main

SMALL = TrainConfig(
    format="E4M3", model="micro", batch_size=4, max_steps=40, warmup_steps=5, eval_interval=40, eval_batches=1,
    diagnostic_interval=20, checkpoint_interval=10, threads=1, compile=False,
)  # fmt: skip


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


def test_a_reason_that_several_runs_share_is_said_once() -> None:
    assert _failures({"a": "no card", "b": "out of memory", "c": "no card", "d": "no card"}) == [
        "a and 2 more: no card",
        "b: out of memory",
    ]
