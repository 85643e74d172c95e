"""The warning before a collapse: given once, shown and told everywhere, and of no consequence for the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import altgrad.collapse.forecast
import tune.watch.webhook_notices
from altgrad.collapse import CollapseForecast
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import Report
from altgrad.results import RunWriter, read_events, read_run
from altgrad.show.sweep_status import sweep_state
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import SMALL, losses
from tune.plan.trial import Trial
from tune.run.trainable import _result
from tune.watch.live_display import TrialState
from tune.watch.webhook_notices import Notices

SENTENCE = "warning at step 40: realised displacement 0.0625, below 0.08"
FROZEN = SMALL.altered(
    format="E7M0", master_weights=False, learning_rate=1e-4
)  # its updates are too small for a grid of powers of two


def warned(*displacements: float | None, warmup: int = 10) -> list[int]:
    """Steps at which a run warns that measures these every 10 steps."""
    forecast = CollapseForecast(TrainConfig(warmup_steps=warmup))
    found = []
    for number, value in enumerate(displacements, start=1):
        forecast.load_state_dict(json.loads(json.dumps(forecast.state_dict(), allow_nan=False)))
        record = {"step": 10 * number, "loss": 1.0}
        warning = forecast.update(record if value is None else {**record, "realised_displacement": value})
        found += [] if warning is None else [warning.step]
    return found


def test_the_first_low_displacement_after_warm_up_warns_once() -> None:
    assert warned(0.0, 0.9, 0.5, 0.0625, 0.01, 0.9, 0.02) == [40]
    assert warned(0.0, 0.9, 0.08, None, math.nan, 0.5) == []  # 0.08 is the limit itself
    assert warned(0.0, 0.02, warmup=20) == []


def test_a_warning_is_an_event_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Report] = []
    found = run_format_experiment(FROZEN, tmp_path / "a", report=told.append, report_interval=4)
    run = read_run(found.folder)
    [event] = [event for event in read_events(run) if event.kind == "collapse_warning"]
    assert event.step == 4  # the first measurement after two steps of warm-up
    assert event.detail["sentence"].startswith("warning at step 4: realised displacement ")
    assert [news.warning for news in told] == [event.detail["sentence"]] * 3
    assert found.verdict is None and found.status == "completed"
    monkeypatch.setattr(altgrad.collapse.forecast, "LIMIT", -1.0)
    silent = read_run(run_format_experiment(FROZEN, tmp_path / "b").folder)
    assert losses(silent) == losses(run) and not read_events(silent)


def test_a_checkpoint_from_before_the_warning_is_read(tmp_path: Path) -> None:
    found = run_format_experiment(FROZEN, tmp_path / "run", until=6)
    folder = found.folder / "checkpoints"
    state, _ = load_checkpoint(folder)
    assert state is not None and state.pop("forecast")["warned"] is not None
    save_checkpoint(folder, 6, state)
    (tmp_path / "run" / "end.json").unlink()
    assert run_format_experiment(FROZEN, tmp_path / "run").status == "completed"


def test_the_live_table_and_the_log_show_it_while_the_run_trains() -> None:
    trial = Trial("e7m0", FROZEN)
    state = TrialState(trial)
    state.take(_result(trial, Report(50, 100, [{"loss": 3.0}], "running", None, SENTENCE)))
    assert state.row().status_text == f"running: {SENTENCE}"
    state.take(_result(trial, Report(60, 100, [], "running", None)) | {"reason": "stalled at step 60"})
    assert state.row().status_text == "running: stalled at step 60"
    state.status, state.reason = "completed", ""
    assert state.row().status_text == "completed"


def test_status_shows_it_from_the_folder_alone(tmp_path: Path) -> None:
    sweep, config = Folder.at(tmp_path / "sweep"), FROZEN.model_dump(mode="json")
    sweep.write_json("sweep.json", {"schema": 1, "runs": [{"run": "a", "config": config}]})
    writer = RunWriter(sweep / "a", flush_seconds=0.0)
    writer.start({"run": "a", "config": config})
    writer.event(40, "collapse_warning", sentence=SENTENCE)
    writer.step({"step": 50, "loss": 3.0})
    writer.flush()
    assert [state.status_text for state in sweep_state(sweep)] == [f"running: {SENTENCE}"]
    writer.end("completed", None, {})
    assert [state.status_text for state in sweep_state(sweep)] == ["completed"]


def test_the_webhook_hears_of_it_once_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[dict[str, Any]] = []
    hook = SimpleNamespace(post=lambda kind, **fields: posted.append({"event": kind, **fields}), close=lambda: None)
    monkeypatch.setattr(tune.watch.webhook_notices, "Webhook", lambda address: hook)
    notices = Notices("http://localhost/hook", Folder.at(tmp_path))
    for name in ("a", "b"):
        ray_trial: Any = SimpleNamespace(trial_id=name, config={"job": {"trial": Trial(name, FROZEN).to_json()}})
        for step in (40, 50, 60):
            warning = {"warning": SENTENCE} if step > 40 and name == "a" else {}
            notices.on_trial_result(0, [], ray_trial, {"step": step, **warning})
    assert posted == [{"event": "warning", "sweep": tmp_path.name, "run": "a", "step": 50, "sentence": SENTENCE}]
