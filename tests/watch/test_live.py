"""What a sweep shows and records about its trials, with Tune's side played by plain objects."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from altgrad.config.train_config import TrainConfig
from altgrad.results import RunWriter, read_run
from altgrad.storage.folder import Folder
from tune.cluster.ray_trial import once_more, why_failed
from tune.plan.trial import Trial
from tune.run.end_records import EndRecords
from tune.run.execution import BaselineSparingASHA
from tune.run.stopper import CollapseStopper
from tune.watch.live_display import LiveDisplay, TrialState

BASELINE = Trial("bf16", TrainConfig(format="BF16", max_steps=100))
OTHER = Trial("e4m3", TrainConfig(format="E4M3", max_steps=100, non_finite_patience=3), baseline="bf16")


def tune_trial(trial: Trial, step: int | None = None, error: Path | None = None) -> Any:
    """What the callbacks use of Tune's trial."""
    result = None if step is None else {"step": step}
    config = {"job": {"trial": trial.to_json()}}
    return SimpleNamespace(trial_id=trial.run, config=config, last_result=result, pickled_error_file=error)


def report(trial: Trial, step: int, **values: Any) -> dict[str, Any]:
    return {"run": trial.run, "step": step, "max_steps": 100, "status": "running", **values}


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    folder = Folder.at(tmp_path / "sweep")
    for trial in (BASELINE, OTHER):
        info = {"run": trial.run, "sweep": "sweep", "config": trial.config.model_dump(), "vocabulary": 256}
        RunWriter(folder / trial.run).start(info | {"intervention": "none"})
    return folder


def progress(sweep: Folder, terminal: bool = False) -> tuple[LiveDisplay, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160, height=20, legacy_windows=False)
    return LiveDisplay([BASELINE, OTHER], sweep, console), text


# end records


def test_a_run_that_the_stopper_ended_gets_its_verdict_and_report(sweep: Folder) -> None:
    stopper = CollapseStopper([BASELINE, OTHER], sweep)
    rows = [{"step": step, "loss": math.nan} for step in range(1, 11)]
    writer = RunWriter(sweep / "bf16")
    for row in rows:
        writer.step(row)
    writer.flush()
    stopper("bf16", report(BASELINE, 10, rows=rows))
    EndRecords(stopper, sweep, "none").on_trial_complete(1, [], tune_trial(BASELINE, 10))
    run = read_run(sweep / "bf16")
    assert run.status == "collapsed" and str(run.verdict) == str(stopper.verdict("bf16"))  # NaN is not itself
    assert "non_finite" in (sweep / "bf16").read_bytes("failure_report.md").decode()


def test_a_run_that_the_scheduler_ended_is_stopped_and_says_by_what(sweep: Folder) -> None:
    ends = EndRecords(CollapseStopper([BASELINE, OTHER], sweep), sweep, "asha")
    ends.on_trial_complete(1, [], tune_trial(OTHER, 40))
    end = (sweep / "e4m3").read_json("end.json")
    assert (end["status"], end["verdict"]) == ("stopped", None)
    assert end["summary"] == {"reason": "stopped by --scheduler asha", "steps": 40}


def test_a_run_that_ended_by_itself_keeps_its_own_record(sweep: Folder) -> None:
    RunWriter(sweep / "e4m3").end("completed", None, {"steps": 100})
    ends = EndRecords(CollapseStopper([BASELINE, OTHER], sweep), sweep, "none")
    ends.on_trial_complete(1, [], tune_trial(OTHER, 100))
    assert (sweep / "e4m3").read_json("end.json")["summary"] == {"steps": 100}


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_verdict_of_the_driver_is_added_to_a_run_that_completed_and_to_none_that_failed(
    sweep: Folder, status: Any
) -> None:
    stopper = CollapseStopper([BASELINE, OTHER], sweep)
    stopper("bf16", report(BASELINE, 10, rows=[{"step": step, "loss": math.nan} for step in range(1, 11)]))
    RunWriter(sweep / "bf16").end(status, None, {"steps": 10})
    EndRecords(stopper, sweep, "none").on_trial_complete(1, [], tune_trial(BASELINE, 10))
    run = read_run(sweep / "bf16")
    assert run.status == ("failed" if status == "failed" else "collapsed")
    assert (run.verdict is None) == (status == "failed")


def test_a_process_that_died_for_good_leaves_a_failed_run_even_before_its_first_word(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "sweep")
    error = tmp_path / "error.pkl"
    from ray import cloudpickle

    error.write_bytes(cloudpickle.dumps(RayActorError()))
    trial = tune_trial(OTHER, error=error)
    EndRecords(CollapseStopper([OTHER], sweep), sweep, "none").on_trial_error(1, [], trial)
    run = read_run(sweep / "e4m3")
    assert run.status == "failed" and run.config["format"] == "E4M3"
    assert run.end is not None and run.end["summary"]["error"] == why_failed(trial) != "unknown"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("(1) The process is killed by SIGKILL by OOM killer due to high memory usage.", "the trial's process died"),
        ("Task was killed due to the node running low on memory.", "its node ran low on memory"),
    ],
)
def test_a_death_that_ray_s_memory_monitor_reports_is_one_for_want_of_memory_and_tried_again_only_once(
    said: str, reason: str, tmp_path: Path
) -> None:
    from ray import cloudpickle

    error = tmp_path / "error.pkl"
    error.write_bytes(cloudpickle.dumps(RayActorError(error_msg=said)))
    trial = tune_trial(OTHER, error=error)
    assert why_failed(trial).endswith(reason) and once_more(trial) == ("low" in reason)
    trial.max_failures, trial.run_metadata = 3, SimpleNamespace(num_failures=1)
    sweep = Folder.at(tmp_path)
    EndRecords(CollapseStopper([OTHER], sweep), sweep, "none").on_trial_recover(1, [], trial)
    assert trial.max_failures == (1 if "low" in reason else 3)


# asha


def test_asha_stops_the_worse_of_two_and_never_the_baseline() -> None:
    scheduler = BaselineSparingASHA(
        time_attr="step", metric="loss", mode="min", max_t=100, grace_period=10, reduction_factor=2
    )
    decisions = {}
    good = Trial("good", OTHER.config)
    for trial in (good, OTHER, BASELINE):
        scheduler.on_trial_add(None, tune_trial(trial))
    for trial, loss in ((good, 1.0), (OTHER, 9.0), (BASELINE, 9.0)):
        decisions[trial.run] = scheduler.on_trial_result(None, tune_trial(trial), {"step": 10, "loss": loss})
    assert decisions == {
        "good": TrialScheduler.CONTINUE,
        "e4m3": TrialScheduler.STOP,
        "bf16": TrialScheduler.CONTINUE,
    }


# what is shown


def test_a_log_gets_a_line_for_start_progress_collapse_and_restart(sweep: Folder) -> None:
    shown, text = progress(sweep)
    trial = tune_trial(OTHER, 10)
    with shown:
        shown.on_trial_start(1, [], trial)
        shown.on_trial_result(1, [], trial, report(OTHER, 10, loss=5.25, gap_to_baseline=0.125, stall_rate=0.5))
        shown.on_trial_result(1, [], trial, report(OTHER, 20, loss=5.0))  # too soon for another line
        shown.on_trial_recover(1, [], trial)
        shown.on_trial_result(1, [], trial, report(OTHER, 30, status="collapsed", reason="stalled at step 30"))
        RunWriter(sweep / "e4m3").end("collapsed", None, {"steps": 30})
        shown.on_trial_complete(1, [], trial)
    lines = [line.split("  ", 2)[2] for line in text.getvalue().splitlines()]
    assert lines[0] == "starts"
    assert lines[1].startswith("10/100  loss 5.25  training vs BF16 +0.125  stalled 50 %  overflow –")
    assert "starts again" in lines[2]
    assert lines[3:] == ["collapsed at step 30: stalled at step 30"]


def test_a_terminal_gets_a_table_with_every_trial(sweep: Folder) -> None:
    shown, text = progress(sweep, terminal=True)
    with shown:
        shown.on_trial_start(1, [], tune_trial(OTHER))
        shown.on_trial_result(1, [], tune_trial(OTHER), report(OTHER, 10, loss=math.nan, overflow_rate=0.25))
    for words in (
        "Training vs BF16",
        "Overflow",
        "ETA",
        "bf16",
        "e4m3",
        "10/100",
        "NaN",
        "25 %",
        "1 waiting, 1 running",
    ):
        assert words in text.getvalue()


def test_trials_that_ended_before_a_resume_are_shown_as_they_ended(sweep: Folder) -> None:
    RunWriter(sweep / "bf16").end("completed", None, {"steps": 100, "final_loss": 2.5})
    shown, text = progress(sweep, terminal=True)
    with shown:
        pass
    assert "completed" in text.getvalue() and "100/100" in text.getvalue()


def test_a_trial_that_is_tried_again_after_a_failure_ends_without_the_old_reason(sweep: Folder) -> None:
    RunWriter(sweep / "e4m3").end("failed", None, {"error": "ConfigError: no loss", "steps": 0})
    shown, text = progress(sweep)
    shown.on_trial_start(1, [], tune_trial(OTHER))
    RunWriter(sweep / "e4m3").end("completed", None, {"steps": 100})
    shown.on_trial_complete(1, [], tune_trial(OTHER, 100))
    assert "e4m3  completed at step 100\n" in text.getvalue() and "no loss" not in text.getvalue()


def test_a_thousand_trials_fit_a_terminal_with_the_running_ones_in_sight(sweep: Folder) -> None:
    trials = [Trial(f"run{number:04}", OTHER.config) for number in range(1000)]
    text = io.StringIO()
    shown = LiveDisplay(trials, sweep, Console(file=text, force_terminal=True, width=160, height=30))
    with shown:
        shown.on_trial_start(1, [], tune_trial(trials[777]))
    last = text.getvalue().split("Training vs BF16")[-1]
    assert "run0777" in last and last.count("\n") < 30


def test_the_time_left_follows_the_pace_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("tune.watch.live_display.time.monotonic", lambda: now[0])
    state = TrialState(OTHER)
    state.take(report(OTHER, 50))  # resumed at step 50: the steps before took this attempt no time
    assert state.eta is None
    now[0] += 10
    state.take(report(OTHER, 60))
    assert state.eta == 40.0  # 1 s a step, 40 left
    now[0] += 3
    assert state.eta == 37.0
