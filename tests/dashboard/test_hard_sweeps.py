"""Sweeps in which little can be said: no page says more than the data do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from altgrad.html import html_report
from altgrad.results import RunWriter
from altgrad.results.annotations import Annotation, write_annotation
from altgrad.storage.folder import Folder
from tests.support.dashboard_pages import drawn, show, words
from tests.support.results import generated_results as generated

SHORT: dict[str, Any] = {"steps": 60, "eval_interval": 20, "diagnostic_interval": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`single`: one run.  `nan`: a BF16 run that died in one of two seeds, and a format whose loss is always NaN.

    `hidden`: the run that collapsed is hidden.  `failed`: a run that failed before its first step.
    """
    root = tmp_path_factory.mktemp("results")
    generated.write_run(generated.new_sweep(root, "single"), generated.InventedRun("E4M3", **SHORT))
    sweep = generated.new_sweep(root, "nan")
    for seed in (1, 2):
        baseline = generated.InventedRun("BF16", seed=seed, **SHORT)
        generated.write_run(sweep, baseline, "failed" if seed == 2 else "completed", until=45 if seed == 2 else None)
        generated.write_run(sweep, generated.InventedRun("E4M3", seed=seed, **SHORT))
    generated.write_run(sweep, generated.InventedRun("E0M7", seed=1, nan_span=(1, 60), **SHORT))
    sweep = generated.new_sweep(root, "hidden")
    generated.write_run(sweep, generated.InventedRun("BF16", **SHORT))
    dead = generated.InventedRun("E7M0", stalls_from=20, **SHORT)
    generated.write_run(sweep, dead, "collapsed", until=50, verdict=generated.STALLED)
    write_annotation(sweep, dead.name, Annotation(hidden=True))
    sweep = generated.new_sweep(root, "failed")
    writer = RunWriter(sweep / "bf16")
    writer.start(generated.InventedRun("BF16", **SHORT).info("failed") | {"run": "bf16"})
    writer.end("failed", None, {"error": "out of memory"})
    return root


def test_a_run_alone_is_offered_no_comparison(root: Path) -> None:
    app = show(root, "overview", sweep="single")
    assert "There is no BF16 run of these seeds" in words(app) and "Any two groups" not in words(app)
    assert "Gaps on one scale" not in drawn(app) and "BF16 run of the same seed in grey" not in drawn(app)
    assert "There is one group only" in words(show(root, "compare", sweep="single", part="groups"))


def test_only_a_run_that_died_is_said_to_have_died(root: Path) -> None:
    text = drawn(show(root, "overview", sweep="nan"))
    assert "at step 40, the last of both" in text and "before it died" not in text


def test_two_groups_without_a_finite_difference_have_a_sentence_and_one_seed_has_no_band(root: Path) -> None:
    groups = {name: f"{name}_lr0.0006_s1" for name in ("bf16", "e4m3", "e0m7")}
    app = show(root, "compare", sweep="nan", part="groups", one=groups["e0m7"], other=groups["bf16"])
    assert "there is no curve" in words(app) and not app.get("plotly_chart")
    app = show(root, "compare", sweep="nan", part="groups", one=groups["e4m3"], other=groups["bf16"])
    assert len(app.get("plotly_chart")) == 1 and "Band: 95 % t interval." in words(app)
    app = show(root, "compare", sweep="nan", part="groups", one=groups["e4m3"], other=groups["e0m7"])
    assert "there is no curve" in words(app)


@pytest.mark.parametrize("page", ["overview", "failures", "compare"])
def test_a_hidden_collapse_is_no_sweep_without_one(root: Path, page: str) -> None:
    said = words(show(root, page, sweep="hidden", part="survival"))
    assert "No run that is shown has collapsed; 1 hidden did" in said and "No run has collapsed" not in said
    assert "No run that is shown has collapsed; 1 hidden did." in html_report(Folder.at(str(root / "hidden")), 0.0)
    if page == "overview":
        assert "The runs that are shown have recorded no event." in said


def test_nobody_is_told_to_wait_for_a_sweep_that_is_over(root: Path) -> None:
    assert "Training loss has not been measured." in words(show(root, "overview", sweep="failed"))
    app = show(root, "formats", sweep="failed", view="tensors")
    assert "This run has stored no tensors: they are written every" in words(app) and " yet" not in words(app)
    for part in ("bits", "learning_rate", "parity"):
        assert " yet" not in words(show(root, "compare", sweep="failed", part=part))
