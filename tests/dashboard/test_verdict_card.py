"""The card of a collapsed run: what happened, what moved first, what was tested, and what this sweep has tried."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from altgrad.report.advising.sweep_evidence import suggestions
from altgrad.report.evidence import Evidence
from altgrad.results import SCHEMA, Verdict
from altgrad.storage.folder import Folder
from dashboard.data.watched_sweep import WatchedSweep
from dashboard.figures.signal_strips import signals_of, strips_figure
from tests.support.dashboard_pages import show, words
from tests.support.drawn_figures import figures, numbers
from tests.support.results import generated_results as generated
from tests.support.results.written_runs import rows_of

SHORT = {"steps": 100, "eval_interval": 20, "diagnostic_interval": 10}
STORED = {"master_weights": False, "stalls_from": 40}
VERDICT = Verdict(80, "stalled", "realised_displacement", 0.02, 0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    sweep = generated.new_sweep(root, "s")
    for seed in (1, 2):
        generated.write_run(sweep, generated.InventedRun("BF16", seed=seed, **SHORT))
    dead = generated.InventedRun("E7M0", seed=1, **SHORT, **STORED)
    generated.write_run(sweep, dead, "collapsed", until=80, verdict=VERDICT)
    generated.write_run(sweep, generated.InventedRun("E7M0", "master", seed=1, **SHORT))
    alone = generated.InventedRun("E0M7", seed=2, **SHORT, **STORED)
    folder = generated.write_run(sweep, alone, "collapsed", until=80, verdict=VERDICT)
    arm = {"name": "master", "label": "FP32 master weights", "kind": "setting", "status": "prevented", "steps": 100}
    found = {"rule": "weights_at_rest", "sentence": "The write-back causes it.", "confidence": "high", "worked": []}
    record = {"schema": SCHEMA, "start": 0, "until": 100, "arms": [arm], "conclusion": found, "finished": True}
    folder.write_json("explanation.json", record)
    return root


@pytest.mark.parametrize("page", ["failures", "run"])
def test_the_card_says_what_happened_what_moved_first_and_what_trained_in_this_sweep(root: Path, page: str) -> None:
    app = show(root, page, run="e7m0_lr0.0006_s1")
    assert not app.exception
    text = words(app).replace("\\", "")
    assert "E7M0 froze at step 80 of 100" in app.error[0].value.replace("(stored) ", "")
    assert "**Rule** `stalled`: realised displacement 0.02, limit 0.1" in text
    assert "**What moved first**: realised displacement at step 50" in text or "at step 50 (" in text
    assert "altgrad explain" in text, "the cause was not tested"
    (tried,) = (line for line in text.splitlines() if "**In this sweep**" in line)
    assert "completed, with intervention master" in tried and "at step 100" in tried
    first = next(line for line in text.splitlines() if line.startswith("1. "))
    assert text.index(first) < text.index(tried) < text.index("\n2. ")
    command = next(block.value for block in app.code if "altgrad sweep" in block.value)
    assert shlex.split(command)[:4] == ["altgrad", "sweep", "--formats", "E7M0"]
    assert "master_weights=false" not in command


def test_a_tested_cause_stands_in_the_card_of_both_pages_and_its_replays_on_failures(root: Path) -> None:
    for page in ("failures", "run"):
        app = show(root, page, run="e0m7_lr0.0006_s2")
        assert "**Cause, tested**: The write-back causes it." in words(app).replace("\\", "")
        frames = [frame.value for frame in app.table if "Replay" in frame.value.columns]
        assert [list(frame["Replay"]) for frame in frames] == ([["FP32 master weights"]] if page == "failures" else [])


def test_the_report_is_folded(root: Path) -> None:
    for page in ("failures", "run"):
        (folded,) = (one for one in show(root, page).expander if one.label == "Failure report")
        assert not folded.proto.expanded and "stalled" in folded.markdown[0].value


def test_suggestions_that_were_tried_come_first_and_each_run_is_evidence_once(root: Path) -> None:
    sweep = WatchedSweep(Folder.at(root / "s"))
    sweep.refresh()
    run = sweep.run("e7m0_lr0.0006_s1")
    assert run is not None
    rows = rows_of(sweep.folder)
    found = suggestions(Evidence.of(run), rows[run.name], rows.values())
    tried = [bool(one.tried) for one in found]
    assert tried[0] and tried == sorted(tried, reverse=True)
    assert found[0].changes == {"master_weights": True}
    assert sum(len(one.tried) for one in found) == 1


def test_bf16_is_behind_the_strips_up_to_the_verdict(root: Path) -> None:
    sweep = WatchedSweep(Folder.at(root / "s"))
    sweep.refresh()
    run, baseline = sweep.run("e7m0_lr0.0006_s1"), sweep.run("bf16_lr0.0006_s1")
    assert run is not None and baseline is not None
    evidence = Evidence.of(run)
    figure = strips_figure(evidence, signals_of(evidence), baseline)
    behind = [trace for trace in figure.data if trace.name == "BF16"]
    assert behind and all(max(trace.x) <= 80 for trace in behind)
    stall = baseline.table("steps", ["stall_rate"]).drop_null().slice(0, 8)
    assert any(list(trace.y) == stall["stall_rate"].to_pylist() for trace in behind)


def test_the_run_page_draws_bf16_behind_each_curve_and_opens_on_what_collapsed_first(root: Path) -> None:
    app = show(root, "run")
    assert app.query_params["run"] in (["e0m7_lr0.0006_s2"], "e0m7_lr0.0006_s2")
    loss = figures(app)[0]
    assert loss["data"][0]["name"] == "BF16, same seed" and numbers(loss["data"][0]["x"])[-1] == 100
    low, high = loss["layout"]["yaxis"]["range"]
    drawn = [numbers(trace["y"]) for trace in loss["data"]]
    assert all(low < values.min() and values.max() < high for values in drawn)
