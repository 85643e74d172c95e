"""The stopper: what the driver sees that a trial cannot, and that seeing it twice changes nothing."""

from __future__ import annotations

import math
import pickle
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altgrad.results import RunWriter
from altgrad.storage.folder import Folder
from tests.support.runs.lagging_run import BASELINE, CONFIG, LAGGARD, falling, lagging
from tune.plan.trial import Trial
from tune.run.stopper import CollapseStopper


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    folder = Folder.at(tmp_path / "sweep")
    for run in ("bf16", "e7m0"):
        record = {"schema": 1, "started": 0, "vocabulary": 256, "config": CONFIG.model_dump()}
        (folder / run).write_json("run.json", record)
    return folder


def report(trial: Trial, losses: Any, first: int, last: int, status: str = "running") -> dict[str, Any]:
    rows = [{"step": step, "loss": losses(step)} for step in range(first, last + 1)]
    return {"run": trial.run, "step": last, "status": status, "rows": rows}


def feed(stopper: CollapseStopper, reports: Sequence[dict[str, Any]]) -> list[bool]:
    return [stopper(result["run"], result) for result in reports]


def both(last: int, size: int = 10) -> list[dict[str, Any]]:
    """Reports of baseline and laggard in turn, `size` steps each."""
    pairs = [
        (report(BASELINE, falling, first, first + size - 1), report(LAGGARD, lagging, first, first + size - 1))
        for first in range(1, last, size)
    ]
    return [result for pair in pairs for result in pair]


def test_the_driver_judges_by_the_entropy_of_the_tokens_that_a_run_has_stored(sweep: Folder) -> None:
    """0.6 of 200 steps, and 100 after the last fall; the loss stays at the frequencies, 3.2 nats."""
    for entropy, rule in ((3.2, "no_context"), (None, None)):
        info = (sweep / "bf16").read_json("run.json")
        (sweep / "bf16").write_json("run.json", info | {"unigram_entropy": entropy})
        stopper = CollapseStopper([BASELINE], sweep)
        feed(stopper, [report(BASELINE, lambda step: 3.2 + 2.3 * math.exp(-step / 5), 1, 190)])
        verdict = stopper.verdict("bf16")
        assert (verdict and verdict.rule) == rule


def test_a_trial_that_falls_behind_its_baseline_is_stopped_and_says_so_in_its_row(sweep: Folder) -> None:
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    reports = both(100)
    decisions = feed(stopper, reports)
    first = decisions.index(True)
    verdict = stopper.verdict("e7m0")
    assert verdict is not None and reports[first]["run"] == "e7m0"
    assert (verdict.rule, verdict.metric, verdict.limit) == ("gap_to_baseline", "gap_to_baseline", 0.5)
    assert reports[first]["reason"] == verdict.sentence()
    assert reports[first]["gap_to_baseline"] > 0.5
    assert stopper.verdict("bf16") is None and not any(decisions[0::2])


def test_the_same_curves_never_differ_from_each_other(sweep: Folder) -> None:
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    twin = [report(t, falling, first, first + 9) for first in range(1, 190, 10) for t in (BASELINE, LAGGARD)]
    assert not any(feed(stopper, twin))
    assert all(result["gap_to_baseline"] == 0.0 for result in twin[1::2])


def test_a_trial_ahead_of_its_baseline_is_judged_at_the_same_step_once_the_baseline_comes(sweep: Folder) -> None:
    side_by_side = CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(side_by_side, both(200))
    ahead = CollapseStopper([BASELINE, LAGGARD], sweep)
    early = [report(LAGGARD, lagging, first, first + 9) for first in range(1, 150, 10)]
    assert not any(feed(ahead, early))
    feed(ahead, [report(BASELINE, falling, first, first + 9) for first in range(1, 150, 10)])
    assert feed(ahead, [report(LAGGARD, lagging, 151, 160)]) == [True]
    assert ahead.verdict("e7m0") == side_by_side.verdict("e7m0")


def test_steps_reported_again_by_a_restarted_trial_change_nothing(sweep: Folder) -> None:
    once, twice = CollapseStopper([BASELINE, LAGGARD], sweep), CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(once, both(100))
    for result in both(100):
        again = {**result, "rows": list(result["rows"])}
        feed(twice, [result, again])
    assert once.verdict("e7m0") == twice.verdict("e7m0") is not None


def test_a_stopper_restored_in_the_middle_reaches_the_same_verdict(sweep: Folder) -> None:
    plain = CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(plain, both(100))
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(stopper, both(40))
    restored = pickle.loads(pickle.dumps(stopper))
    feed(restored, both(100))
    assert restored.verdict("e7m0") == plain.verdict("e7m0") is not None


def test_a_resumed_sweep_compares_with_the_baseline_that_lies_on_disk(sweep: Folder) -> None:
    writer = RunWriter(sweep / "bf16")
    for step in range(1, 201):
        writer.step({"step": step, "loss": falling(step)})
    writer.end("completed", None, {})
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    assert any(feed(stopper, [report(LAGGARD, lagging, first, first + 9) for first in range(1, 100, 10)]))


def test_a_resumed_trial_is_judged_with_the_steps_of_its_earlier_attempt(sweep: Folder) -> None:
    plain = CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(plain, both(100))
    for trial, losses in ((BASELINE, falling), (LAGGARD, lagging)):
        writer = RunWriter(sweep / trial.run)
        for step in range(1, 31):
            writer.step({"step": step, "loss": losses(step)})
        writer.flush()
    resumed = CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(resumed, both(100)[6:])
    assert resumed.verdict("e7m0") == plain.verdict("e7m0") is not None


def test_a_baseline_that_is_a_branch_has_its_parent_s_losses_up_to_there_and_no_later_ones(sweep: Folder) -> None:
    parent = sweep / "trunk"
    writer = RunWriter(parent)
    writer.start({"run": "trunk", "vocabulary": 256, "config": CONFIG.model_dump()})
    for step in range(1, 101):
        writer.step({"step": step, "loss": falling(step)})
    writer.end("completed", None, {})
    branch = Trial("bf16", BASELINE.config.altered(branch_from={"run": str(parent), "step": 50}))
    assert CollapseStopper([branch], sweep)._curves == {"bf16": {step: falling(step) for step in range(1, 51)}}


def test_a_branch_ahead_of_its_baseline_shows_no_gap_of_a_step_before_it(sweep: Folder) -> None:
    writer = RunWriter(sweep / "trunk")
    writer.start({"run": "trunk", "config": CONFIG.model_dump(), "vocabulary": 256})
    for step in range(1, 51):
        writer.step({"step": step, "loss": falling(step)})
    writer.flush()
    origin = {"run": str(sweep / "trunk"), "step": 50}
    first, other = (replace(one, config=one.config.altered(branch_from=origin)) for one in (BASELINE, LAGGARD))
    for trial in (first, other):
        (sweep / trial.run).write_json(
            "run.json", {"schema": 1, "started": 0, "vocabulary": 256, "config": trial.config.model_dump(),
                         "branch": {"parent": origin["run"], "run": "trunk", "step": 50, "changes": {}}},
        )  # fmt: skip
    stopper = CollapseStopper([first, other], sweep)
    ahead, theirs, then = report(other, lagging, 51, 60), report(first, falling, 51, 60), report(other, lagging, 61, 62)
    feed(stopper, [ahead, theirs, then])
    assert "gap_to_baseline" not in ahead and 0.3 < then["gap_to_baseline"] < 1.0


def test_a_baseline_that_ends_early_does_not_hold_back_the_other_rules(sweep: Folder) -> None:
    stopper = CollapseStopper([BASELINE, LAGGARD], sweep)
    feed(stopper, [report(BASELINE, falling, 1, 10), report(LAGGARD, falling, 1, 10)])
    assert feed(stopper, [report(LAGGARD, lambda step: math.nan, 11, 20)]) == [False]
    stopper.ended("bf16")
    assert feed(stopper, [report(LAGGARD, lambda step: math.nan, 21, 30)]) == [True]
    verdict = stopper.verdict("e7m0")
    assert verdict is not None and verdict.rule == "non_finite"


def test_a_trial_that_reports_its_own_end_is_not_stopped_a_second_time(sweep: Folder) -> None:
    stopper = CollapseStopper([BASELINE], sweep)
    end = report(BASELINE, lambda step: math.nan, 1, 10, status="collapsed")
    assert feed(stopper, [end]) == [False]
    assert "non_finite" in end["reason"]
    assert feed(stopper, [{name: value for name, value in end.items() if name != "rows"}]) == [False]


def test_a_run_that_should_outlive_its_collapse_is_not_stopped(sweep: Folder) -> None:
    on = Trial("e7m0", LAGGARD.config.altered(stop_on_collapse=False), baseline="bf16")
    stopper = CollapseStopper([BASELINE, on], sweep)
    assert not any(feed(stopper, both(100)))
    assert stopper.verdict("e7m0") is not None


def test_records_do_not_stay_in_the_row_that_tune_stores(sweep: Folder) -> None:
    result = report(BASELINE, falling, 1, 10)
    CollapseStopper([BASELINE], sweep)("bf16", result)
    assert "rows" not in result


def test_storage_that_fails_for_a_moment_delays_the_judgement_only(
    sweep: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopper = CollapseStopper([BASELINE], sweep)
    writer = RunWriter(sweep / "bf16")
    for step in range(1, 11):
        writer.step({"step": step, "loss": math.nan if step > 2 else 5.0})
    writer.flush()
    with monkeypatch.context() as broken:
        broken.setattr(Folder, "read_json", lambda *_: (_ for _ in ()).throw(OSError("unreachable")))
        assert not stopper("bf16", report(BASELINE, falling, 1, 10))
    assert stopper("bf16", report(BASELINE, falling, 11, 20))
    verdict = stopper.verdict("bf16")
    assert verdict is not None and verdict.step == 7


def test_an_interrupt_stops_everything(sweep: Folder) -> None:
    stopper = CollapseStopper([BASELINE], sweep)
    assert not stopper.stop_all()
    stopper.interrupted = signal.SIGINT
    assert stopper.stop_all()
