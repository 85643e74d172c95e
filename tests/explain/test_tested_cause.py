"""What an explanation showed is on every screen: report, static page, dashboard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from altgrad.html import write_html_report
from altgrad.report import write_failure_report
from altgrad.storage.folder import Folder
from tests.support.dashboard_pages import show, words
from tests.support.results import generated_results as generated

CELL = ["h.0.mlp.up", "dgrad", "gradient"]
SENTENCE = "Healing dgrad.gradient of h.0.mlp.up alone prevents the collapse (3 of 3 replays)."


def arm(name: str, label: str, kind: str, status: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "label": label, "kind": kind, "status": status, "steps": 60, **fields}


RECORD: dict[str, Any] = {
    "schema": 1,
    "start": 20,
    "until": 60,
    "notes": ["there is no checkpoint from before the first sign"],
    "arms": [
        arm("control", "unchanged replay", "control", "collapsed", step=50, rule="stalled", repeats=True, loss=5.25),
        arm("rate", "half the learning rate", "equal_cost", "prevented", loss=3.0, loss_step=50, loss_control=5.25),
        arm("heal-1", "that operand in BF16", "heal", "prevented", cells=[CELL], loss=4.5, loss_step=50,
            loss_control=5.25, loss_baseline=2.75),
        arm("seed", "other | numbers", "equal_cost", "failed", error="OSError: full"),
    ],
    "conclusion": {"rule": "operands", "sentence": SENTENCE, "confidence": "high", "cells": [CELL]},
    "finished": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explained")
    sweep = generated.new_sweep(root, "s")
    fields = {"steps": 60, "eval_interval": 20, "diagnostic_interval": 10}
    for name in ("E7M0", "E4M3"):
        run = generated.InventedRun(name, stalls_from=20, **fields)
        generated.write_run(sweep, run, "collapsed", until=50, verdict=generated.STALLED)
    return root


def runs_of(results: Path) -> list[Folder]:
    """The folders of the two runs: the first is explained, the second is not."""
    folders = sorted(file.parent for file in results.glob("s/*/run.json"))
    explained = Folder.at(folders[0])
    explained.write_json("explanation.json", RECORD)
    return [explained, Folder.at(folders[1])]


def test_the_report_has_the_cause_and_first_advises_what_was_tried(results):
    explained, other = runs_of(results)
    text = write_failure_report(explained)
    cause = text[text.index("## Cause, tested") : text.index("## What to try")]
    assert SENTENCE in cause and "Confidence: high." in cause
    assert "trains steps 21 to 60 again" in cause and "There is no checkpoint" in cause
    assert "| unchanged replay | stalled, step 50, bit for bit as in the run | 5.25 |" in cause
    assert "| that operand in BF16 | no collapse until step 60 | 4.5 | 50 | 5.25 | 2.75 |" in cause
    assert "failed: OSError: full" in cause
    first, second = text[text.index("## What to try") :].splitlines()[2:4]
    assert first.startswith("1. Tried, and it worked: that operand in BF16: no collapse until step 60, loss 4.5")
    assert first.endswith("at step 50 (5.25 unchanged, 2.75 BF16)")
    assert second.startswith("2. Tried, and it worked: half the learning rate")
    assert "Cause, tested" not in write_failure_report(other)
    others = [
        arm("batches", "unchanged, on other batches", "equal_cost", "collapsed", step=48, rule="stalled", loss=5.5,
            loss_step=50, replay=1),
        arm("heal-1-1", "healed, on others", "heal", "prevented", cells=[CELL], loss=4.25, loss_step=50, replay=1),
    ]  # fmt: skip
    control = {**RECORD["arms"][0], "loss_step": 50}
    explained.write_json("explanation.json", {**RECORD, "arms": [control, *RECORD["arms"][1:], *others]})
    # 5.25 - 4.5 and 5.5 - 4.25: mean 1, standard error 0.25, and t = 12.706 with one degree of freedom
    said = "Healed, the loss is lower by 1 (-2.177 to 4.177, 95 % t interval over 2 replays"
    assert said in write_failure_report(explained) and "t interval" not in text
    eased = arm("master", "wider weights", "setting", "prevented", changes={"weight_format": "E2M5"}, loss=3.5)
    healed = arm("all_operands", "all in BF16", "heal", "prevented", cells=[CELL, [*CELL[:2], "weight"]], loss=2.5)
    stored = {**RECORD["conclusion"], "rule": "weights_at_rest", "cells": []}
    record = {**RECORD, "arms": [control, healed, RECORD["arms"][1], eased], "conclusion": stored}
    explained.write_json("explanation.json", record)
    advice = write_failure_report(explained).partition("## What to try")[2].splitlines()[2:6]
    worked = [line.partition(" worked: ")[2].partition(":")[0] for line in advice[:3]]
    assert worked == ["wider weights (`weight_format", "half the learning rate", "all in BF16"]
    assert "(`weight_format: E2M5`)" in advice[0] and "`weight_format" not in "".join(advice[1:])  # not twice
    record["arms"][-1] = {**eased, "harm_left": 0.6}
    explained.write_json("explanation.json", record)
    text = write_failure_report(explained)
    assert "| no collapse until step 60, but 60% of the harm is left |" in text
    assert "worked: wider" not in text and "3. `weight_format: E2M5`: an ULP" in text
    explained.write_json("explanation.json", {**RECORD, "arms": [{"name": "a"}]})
    assert "Cause, tested" not in write_failure_report(explained)


def test_what_a_replay_showed_in_vain_is_advised_no_more(results):
    explained, _ = runs_of(results)
    facts = {"step": 50, "rule": "stalled", "loss": 5.25, "loss_step": 50}
    control = arm("control", "unchanged replay", "control", "collapsed", repeats=True, **facts)
    wider = arm("wider", "wider weights", "setting", "collapsed", changes={"weight_format": "E2M5"}, **facts)
    healed = arm("all_operands", "all in BF16", "heal", "collapsed", cells=[CELL], **facts)
    undecided = {**RECORD["conclusion"], "rule": "nothing", "cells": []}
    for arms, in_vain in (
        ([control], False),
        ([control, wider], True),
        ([control, healed], True),
        ([control, {**wider, "replay": 1}], False),
        ([control, {**wider, "loss": 3.0, "loss_control": 5.25, "loss_baseline": 2.75}], False),
        ([control, {**wider, "loss": 5.0, "loss_control": 5.25, "loss_baseline": 2.75}], True),
        ([control, {**wider, "loss": math.nan, "loss_control": math.nan}], True),
        ([control, {**wider, "changes": {"weight_format": "E3M4"}}], False),
    ):
        explained.write_json("explanation.json", {**RECORD, "arms": arms, "conclusion": undecided})
        text = write_failure_report(explained).partition("## What to try")[2].partition("## Overflow")[0]
        advised, _, vain = text.partition("Tried, and it did not help:")
        assert ("`weight_format: E2M5`" in vain) == in_vain
        assert (". `weight_format: E2M5`: " in advised) == (not in_vain)


def test_the_static_page_and_the_dashboard_show_it(results):
    explained, other = runs_of(results)
    for run in (explained, other):
        write_failure_report(run)
    page = Path(write_html_report(Folder.at(results / "s"))).read_text()
    assert page.count("alone prevents the collapse (3 of 3 replays)") == 1
    shown = words(show(results, "failures", run=explained.name))
    assert shown.count("alone prevents the collapse (3 of 3 replays)") == 2  # the card, and the report below
    assert "There is no checkpoint from before the first sign" in shown
    assert "alone prevents the collapse" in words(show(results, "run", run=explained.name))
    assert "altgrad explain" in words(show(results, "failures", run=other.name))
