"""A run that ends before its baseline is judged as one that came after it: the verdict does not depend on the clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tune.watch.webhook_notices
from altgrad.collapse import CollapseDetector, gap_to_baseline, judged
from altgrad.results import RunWriter, Status, Verdict, list_runs, read_run
from altgrad.storage.folder import Folder
from tests.support.runs.lagging_run import BASELINE, CONFIG, LAGGARD, falling, lagging
from tune.plan.trial import Trial
from tune.run.end_records import EndRecords
from tune.run.stopper import CollapseStopper
from tune.watch.webhook_notices import Notices

Loss = Callable[[int], float]


def dying(step: int) -> float:
    """As `lagging`, but NaN from step 100 on, which the run itself judges."""
    return lagging(step) if step < 100 else math.nan


def begin(folder: Folder) -> Folder:
    for trial in (BASELINE, LAGGARD):
        info = {"run": trial.run, "sweep": "s", "config": trial.config.model_dump(), "vocabulary": 256, "started": 0.0}
        RunWriter(folder / trial.run).start(info | {"intervention": "none"})
    return folder


def train(sweep: Folder, trial: Trial, loss: Loss, stopper: CollapseStopper | None, steps: range) -> None:
    """What an attempt at a trial writes and reports, ten steps at a time."""
    writer = RunWriter(sweep / trial.run, attempt=int(steps.start > 1))
    rows = [{"step": step, "loss": loss(step)} for step in steps]
    for row in rows:
        writer.step(row)
    writer.flush()
    for first in range(0, len(rows) if stopper else 0, 10):
        part = rows[first : first + 10]
        assert stopper is not None
        stopper(trial.run, {"run": trial.run, "step": part[-1]["step"], "status": "running", "rows": part})


def end(
    sweep: Folder, trial: Trial, ends: EndRecords, status: Status = "completed", verdict: Verdict | None = None
) -> None:
    RunWriter(sweep / trial.run).end(status, verdict, {"steps": 200})
    ends.on_trial_complete(1, [], in_tune(trial))


def in_tune(trial: Trial) -> Any:
    """What the callbacks use of Tune's trial."""
    return SimpleNamespace(trial_id=trial.run, config={"job": {"trial": trial.to_json()}}, last_result={"step": 200})


def expected(loss: Loss) -> Verdict:
    """The verdict of a run beside a baseline of which every loss was there first."""
    gap = gap_to_baseline(CONFIG, 256, {step: falling(step) for step in range(1, 201)})
    found = judged(CollapseDetector(CONFIG, 256), gap, [{"step": step, "loss": loss(step)} for step in range(1, 201)])
    assert found is not None and found.rule == "gap_to_baseline"
    return found


@pytest.mark.parametrize("reached", [0, 40])
@pytest.mark.parametrize("status", ["completed", "stopped"])
def test_a_run_that_ends_before_its_baseline_gets_the_verdict_once_the_baseline_has_ended(
    reached: int, status: Status, tmp_path: Path
) -> None:
    sweep, told = begin(Folder.at(tmp_path / "s")), list[str]()
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    ends = EndRecords(stopper, sweep, "none", told.append)
    train(sweep, BASELINE, falling, stopper, range(1, reached + 1))
    train(sweep, LAGGARD, lagging, stopper, range(1, 201))
    end(sweep, LAGGARD, ends, status)
    assert read_run(sweep / "e7m0").verdict is None
    train(sweep, BASELINE, falling, stopper, range(reached + 1, 201))
    end(sweep, BASELINE, ends)
    run = read_run(sweep / "e7m0")
    assert (run.status, run.verdict) == ("collapsed", expected(lagging))
    assert run.folder.has("failure_report.md") and len(told) == 1 and told[0].startswith("e7m0: collapsed")
    assert read_run(sweep / "bf16").verdict is None


def test_a_run_that_ended_in_an_earlier_process_is_judged_by_what_lies_on_disk(tmp_path: Path) -> None:
    sweep = begin(Folder.at(tmp_path / "s"))
    train(sweep, LAGGARD, lagging, None, range(1, 201))
    RunWriter(sweep / "e7m0").end("completed", None, {"steps": 200})
    train(sweep, BASELINE, falling, None, range(1, 101))
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    ends = EndRecords(stopper, sweep, "none", lambda said: None)
    train(sweep, BASELINE, falling, stopper, range(101, 201))
    end(sweep, BASELINE, ends)
    assert read_run(sweep / "e7m0").verdict == expected(lagging)


def test_the_verdict_of_an_earlier_step_replaces_what_the_run_itself_saw_later(tmp_path: Path) -> None:
    sweep = begin(Folder.at(tmp_path / "s"))
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    ends = EndRecords(stopper, sweep, "none", lambda said: None)
    train(sweep, LAGGARD, dying, stopper, range(1, 105))
    own = Verdict(104, "non_finite", "loss", math.nan, math.inf, "")
    end(sweep, LAGGARD, ends, "collapsed", own)
    train(sweep, BASELINE, falling, stopper, range(1, 201))
    end(sweep, BASELINE, ends)
    assert read_run(sweep / "e7m0").verdict == expected(dying)


def test_a_run_as_good_as_its_baseline_and_one_that_failed_get_no_verdict(tmp_path: Path) -> None:
    good: tuple[Status, Loss] = ("completed", falling)
    failed: tuple[Status, Loss] = ("failed", lagging)
    for number, (status, loss) in enumerate((good, failed)):
        sweep = begin(Folder.at(tmp_path / str(number)))
        stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
        ends = EndRecords(stopper, sweep, "none", lambda said: None)
        train(sweep, LAGGARD, loss, stopper, range(1, 201))
        end(sweep, LAGGARD, ends, status)
        train(sweep, BASELINE, falling, stopper, range(1, 201))
        end(sweep, BASELINE, ends)
        runs, _ = list_runs(sweep)
        assert {run.name: (run.status, run.verdict) for run in runs} == {
            "bf16": ("completed", None), "e7m0": (status, None)}  # fmt: skip


def test_the_webhook_hears_of_a_collapse_that_only_the_baseline_showed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[tuple[str, Any]] = []
    hook = SimpleNamespace(post=lambda kind, **fields: posted.append((kind, fields.get("run"))), close=lambda: None)
    monkeypatch.setattr(tune.watch.webhook_notices, "Webhook", lambda address: hook)
    sweep = begin(Folder.at(tmp_path / "s"))
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    ends = EndRecords(stopper, sweep, "none", lambda said: None)
    with Notices("http://localhost/hook", sweep) as notices:
        for trial, loss in ((LAGGARD, lagging), (BASELINE, falling)):
            train(sweep, trial, loss, stopper, range(1, 201))
            end(sweep, trial, ends)
            notices.on_trial_complete(1, [], in_tune(trial))
    assert posted == [("collapsed", "e7m0"), ("end", None)]
