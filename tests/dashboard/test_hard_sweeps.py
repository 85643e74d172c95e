"""Sweeps in which little can be said: no page says more than the data do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard_pages import drawn, show, words
from tests.support.results import generated_results as generated

SHORT: dict[str, Any] = {"steps": 60, "eval_interval": 20, "diagnostic_interval": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`single`: one run.  `nan`: a BF16 run that died in one of two seeds, and a format whose loss is always NaN."""
    root = tmp_path_factory.mktemp("results")
    generated.write_run(generated.new_sweep(root, "single"), generated.InventedRun("E4M3", **SHORT))
    sweep = generated.new_sweep(root, "nan")
    for seed in (1, 2):
        baseline = generated.InventedRun("BF16", seed=seed, **SHORT)
        generated.write_run(sweep, baseline, "failed" if seed == 2 else "completed", until=45 if seed == 2 else None)
        generated.write_run(sweep, generated.InventedRun("E4M3", seed=seed, **SHORT))
    generated.write_run(sweep, generated.InventedRun("E0M7", seed=1, nan_span=(1, 60), **SHORT))
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
