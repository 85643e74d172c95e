"""Device-hours spent and saved, by hand: training time times the devices held, and what early stopping spared."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altgrad.compare import Shown, write_comparison
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.attempts import earlier_attempts
from altgrad.experiment.outcome import Report
from altgrad.results import RunWriter, Status, list_runs, read_run
from altgrad.show.sweep_progress import compute_sentence, progress
from altgrad.show.sweep_status import sweep_state
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner
from tests.support.results.written_runs import rows_of
from tests.support.runs.small_runs import SMALL


def write_run(
    sweep: Folder, name: str, steps: int, seconds: float, status: Status | None, held: dict[str, float] | None
) -> None:
    """A run of at most 100 steps that got to `steps` in `seconds`."""
    writer = RunWriter(sweep / name, flush_seconds=1e9)
    config = TrainConfig(max_steps=100).model_dump()
    writer.start({"run": name, "config": config, "intervention": "none"} | ({"resources": held} if held else {}))
    writer.step({"step": steps, "elapsed_seconds": seconds})
    if status is None:
        writer.flush()
    else:
        writer.end(status, None, {})


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    sweep = Folder.at(tmp_path / "s")
    quarter = {"cpus": 1.0, "gpus": 0.25}
    write_run(sweep, "whole", 100, 7200.0, "completed", quarter)  # 2 h of a quarter: 0.5
    write_run(sweep, "collapsed", 40, 3600.0, "collapsed", quarter)  # 0.25, and 60 steps of 90 s spared: 0.375
    write_run(sweep, "stopped", 50, 1440.0, "stopped", quarter)  # 0.1, and as much again spared
    write_run(sweep, "running", 10, 1440.0, None, quarter)  # 0.1, nothing spared yet
    return sweep


@pytest.mark.parametrize("beginning", [
    {"branch": {"parent": "p", "run": "p", "step": 1000, "changes": {}}},
    {"config": {"start_from": "p@1000", "start_keeps": ["step"]}},
])  # fmt: skip
def test_the_steps_of_a_checkpoint_cost_a_run_that_goes_on_from_it_nothing(
    beginning: dict[str, Any], tmp_path: Path
) -> None:
    """Two runs of 2,000 steps go on after step 1,000: one collapsed after 40 steps of 1 s, one trains and is at 10."""
    sweep, now = Folder.at(tmp_path), time.time()
    config = TrainConfig(max_steps=2000, **beginning.get("config", {})).model_dump(mode="json")
    for name, steps, status in (("collapsed", 40, "collapsed"), ("running", 10, None)):
        writer = RunWriter(sweep / name, flush_seconds=1e9)
        held = {"config": config, "intervention": "none", "resources": {"cpus": 1.0, "gpus": 0.0}}
        writer.start({"run": name, **held, "branch": None, **beginning, "config": config, "started": now - steps})
        writer.step({"step": 1000 + steps, "elapsed_seconds": float(steps)})
        if status is None:
            writer.flush()
        else:
            writer.end("collapsed", None, {})
    rows = rows_of(sweep)
    assert rows["collapsed"].seconds_saved == pytest.approx(2000 - 1040)
    assert (rows["running"].step, rows["running"].own_steps) == (1010, 10)
    (sweep).write_json("sweep.json", {"schema": 1, "runs": [
        {"run": name, "config": {"format": "E4M3", "max_steps": 2000}} for name in rows]})  # fmt: skip
    etas = {state.run: state.eta for state in sweep_state(sweep)}
    assert etas == {"collapsed": None, "running": pytest.approx(2000 - 1010)}
    state = progress(list(rows.values()), list_runs(sweep)[0], 2, now)
    assert (state.steps, state.planned_steps) == (50, 50 + 990)


def test_time_left_counts_neither_a_long_pause_nor_the_steps_of_earlier_attempts(tmp_path: Path) -> None:
    """A sweep ended its first run in 100 s, was interrupted in the second, and resumed five days later.

    That run trained 60 of its 100 steps before, and 20 in the 20 s since.
    """
    sweep, now = Folder.at(tmp_path), time.time()
    before = now - 5 * 86_400
    config = TrainConfig(max_steps=100).model_dump(mode="json")
    whole = RunWriter(sweep / "whole", flush_seconds=1e9)
    whole.start({"run": "whole", "config": config, "started": before})
    whole.step({"step": 100, "elapsed_seconds": 100.0})
    whole.end("completed", None, {})
    end = sweep / "whole"
    end.write_json("end.json", {**end.read_json("end.json"), "ended": before + 100})
    for attempt, steps in ((0, range(1, 61)), (1, range(61, 81))):
        resumed = RunWriter(sweep / "resumed", attempt, flush_seconds=1e9)
        earlier = [{"attempt": 0, "seconds": 60.0}] if attempt else []
        started = now - 20 if attempt else before + 100
        resumed.start({"run": "resumed", "config": config, "started": started, "earlier": earlier})
        for step in steps:
            resumed.step({"step": step, "elapsed_seconds": float(step)})
        resumed.flush()
    rows = list(rows_of(sweep).values())
    state = progress(rows, list_runs(sweep)[0], 2, now)
    assert state.steps == 180
    assert state.seconds_left == pytest.approx(20, rel=0.01)  # a step takes a second
    jumped = progress(rows, list_runs(sweep)[0], 2, before - 1000).seconds_left
    assert jumped is None or jumped >= 0, "the clock went backwards"


def test_hours_are_time_times_devices_and_savings_the_steps_not_trained(sweep: Folder) -> None:
    found = {run: (row.device, row.device_hours, row.device_hours_saved) for run, row in rows_of(sweep).items()}
    assert found == {
        "whole": ("GPU", 0.5, None),
        "collapsed": ("GPU", 0.25, pytest.approx(0.375)),
        "stopped": ("GPU", 0.1, pytest.approx(0.1)),
        "running": ("GPU", 0.1, None),
    }
    assert compute_sentence(list(rows_of(sweep).values())) == (
        "Compute: 0.95 GPU-hours spent, 0.475 saved by early stopping"
    )


def test_cores_are_counted_where_no_gpu_was_held_and_silence_is_not_zero(sweep: Folder) -> None:
    write_run(sweep, "on_cpu", 100, 1800.0, "completed", {"cpus": 3.0, "gpus": 0.0})
    write_run(sweep, "by_hand", 100, 1800.0, "completed", None)
    rows = rows_of(sweep)
    assert (rows["on_cpu"].device, rows["on_cpu"].device_hours) == ("CPU-core", 1.5)
    assert (rows["by_hand"].device, rows["by_hand"].device_hours) == (None, None)
    assert compute_sentence(list(rows.values())) == (
        "Compute: 1.5 CPU-core-hours spent, 0 saved by early stopping; 0.95 GPU-hours spent, 0.475 saved by early "
        "stopping; 1 run has no record of its CPUs"
    )
    assert compute_sentence([rows["by_hand"]]) is None
    write_run(sweep, "by_hand_too", 100, 1800.0, "completed", None)
    assert (compute_sentence(list(rows_of(sweep).values())) or "").endswith("; 2 runs have no record of their CPUs")


def test_the_comparison_files_have_hours_by_run_and_in_total(sweep: Folder) -> None:
    rows = list(rows_of(sweep).values())
    write_comparison(sweep, Shown(rows), compute_sentence(rows))
    text = sweep.read_bytes("comparison.md").decode()
    assert text.rstrip().splitlines()[-1] == compute_sentence(rows)
    exact = {line["run"]: line for line in csv.DictReader(sweep.read_bytes("comparison.csv").decode().splitlines())}
    assert (exact["whole"]["device_hours"], exact["whole"]["device_hours_saved"]) == ("0.5", "")
    assert float(exact["collapsed"]["device_hours_saved"]) == pytest.approx(0.375)


def test_each_attempt_counts_at_what_it_held_and_time_that_was_trained_twice_counts_twice(tmp_path: Path) -> None:
    """Steps 1 to 20 in 3600 s on half a GPU, killed; from 11 on again, on 2 cores, 10 steps in 1800 s."""
    folder = Folder.at(tmp_path / "s" / "run")
    config = TrainConfig(max_steps=20)
    info = {"run": "run", "config": config.model_dump(mode="json")}
    first = RunWriter(folder, flush_seconds=1e9)
    first.start({**info, "resources": {"cpus": 1.0, "gpus": 0.5}, "earlier": []})
    for step in range(1, 21):
        first.step({"step": step, "elapsed_seconds": step * 180.0})
    first.flush()
    earlier = earlier_attempts(folder)
    assert earlier == [{"attempt": 0, "resources": {"cpus": 1.0, "gpus": 0.5}, "seconds": 3600.0}]
    second = RunWriter(folder, attempt=1, flush_seconds=1e9)
    second.start({**info, "resources": {"cpus": 2.0, "gpus": 0.0}, "earlier": earlier})
    for step in range(11, 21):
        second.step({"step": step, "elapsed_seconds": 1800.0 + (step - 10) * 180.0})
    second.end("completed", None, {})
    row = rows_of(folder.parent)["run"]
    assert row.hours == {"GPU": 0.5, "CPU-core": 1.0}
    assert (row.device, row.device_hours) == ("CPU-core", 1.0)
    assert compute_sentence([row]) == (
        "Compute: 1 CPU-core-hours spent, 0 saved by early stopping; 0.5 GPU-hours spent, 0 saved by early stopping"
    )
    assert [one["seconds"] for one in earlier_attempts(folder)] == [3600.0, 1800.0]


def test_a_run_that_goes_on_writes_what_its_earlier_attempts_held(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "s" / "run")

    def killed(report: Report) -> None:
        raise KeyboardInterrupt

    def train(report: Callable[[Report], None] | None, cpus: float) -> None:
        runner = FormatExperimentRunner(SMALL, folder, report=report, resources={"cpus": cpus, "gpus": 0.0})
        runner.run()

    with pytest.raises(KeyboardInterrupt):
        train(killed, 1.0)
    table = read_run(folder).table("steps", ["elapsed_seconds"])
    assert table["step"].to_pylist()[-1] == 10
    train(None, 2.0)
    info = read_run(folder).info
    assert info["earlier"] == [
        {"attempt": 0, "resources": {"cpus": 1.0, "gpus": 0.0}, "seconds": table["elapsed_seconds"][-1].as_py()}
    ]
    row = rows_of(folder.parent)["run"]
    assert row.seconds is not None and row.device_hours is not None
    assert row.device_hours > row.seconds / 3600
