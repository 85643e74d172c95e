"""Which run is the baseline of which, and what is said where two runs are unlike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from altgrad.compare import (
    comparison_csv,
    comparison_markdown,
)
from altgrad.compare.pairing import NUMERICS, RUNNING, Settings
from altgrad.config.train_config import TrainConfig
from altgrad.html import html_report
from altgrad.report import sweep_report
from altgrad.storage.folder import Folder
from tests.support.html_tree import parse
from tests.support.results.written_runs import HASHES, rows_of, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


WITHOUT_EFFECT = [
    {}, {"scaling": "none"}, {"scaling": "delayed"}, {"scale_granularity": "row"}, {"update_rounding": "stochastic"},
    {"weight_format": "BF16"}, {"amax_history": 4}, {"block_axis": "last"}, {"high_first_blocks": 1.0},
    {"high_last_blocks": 0.5}, {"rounding_seed": 5},
]  # fmt: skip

NOT_THE_REFERENCE = [
    {"master_weights": False}, {"rounding": "stochastic"}, {"rounding": "toward_zero"}, {"gradient_format": "E5M2"},
    {"weight_format": "E4M3"}, {"activation_format": "FP32"}, {"layer_formats": {"lm_head": "E4M3"}},
    {"format": "FP32"}, {"format": "FP16"}, {"enable_emergency_shift": True}, {"enable_partition_clipping": True},
    {"overflow": "saturate"}, {"scale_power_of_two": False}, {"amax_factor": 0.5},
    {"master_weights": False, "update_rounding": "stochastic"}, {"recipe": "mxfp8"}, {"recipe": "bf16_sr"},
    {"gemms": {"wgrad": {"format": "E4M3"}}}, {"layer_gemms": {"lm_head": {"wgrad": {"format": "E4M3"}}}},
    {"attention_gemms": True}, {"first_moment": {"format": "E4M3"}}, {"second_moment": {"format": "E4M3"}},
    {"phases": [{"from_step": 50, "format": "E4M3"}]},
]  # fmt: skip


@pytest.mark.parametrize("changes", WITHOUT_EFFECT)
def test_bf16_with_masters_is_the_baseline_however_it_is_scaled(sweep: Folder, changes: dict[str, Any]) -> None:
    write_run(sweep, "bf16", {100: 2.0}, config=changes)
    write_run(sweep, "e4m3", {100: 2.5}, config={"format": "E4M3"})
    assert rows_of(sweep)["e4m3"].gap == 0.5


@pytest.mark.parametrize("changes", NOT_THE_REFERENCE)
def test_no_other_recipe_is_taken_for_the_baseline(sweep: Folder, changes: dict[str, Any]) -> None:
    write_run(sweep, "a-bf16", {100: 2.0}, config=changes)
    write_run(sweep, "e4m3", {100: 2.5}, config={"format": "E4M3"})
    rows = rows_of(sweep)
    assert not any(row.is_baseline for row in rows.values()) and rows["e4m3"].gap is None
    assert not Settings(TrainConfig(**changes).model_dump(), "none").is_baseline


def test_an_intervention_is_no_baseline_and_every_numeric_field_is_decided_about() -> None:
    assert not Settings(TrainConfig().model_dump(), "master").is_baseline
    assert Settings(TrainConfig().model_dump(), "none").is_baseline
    tried = {name for changes in (*WITHOUT_EFFECT, *NOT_THE_REFERENCE) for name in changes}
    undecided = NUMERICS - tried - RUNNING
    assert undecided <= {"gemm_dtype", "native_fp8"}, "how products are computed"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"initial_weights_hash": "c3d4c3d4c3d4c3d4"}, "not compared: other initial weights (c3d4c3d4… vs a1b2a1b2…)"),
        ({"batches_hash": "03b1"}, "not compared: other batches (03b1 vs 77aa77aa…)"),
        ({"vocabulary": None}, "not compared: other vocabulary (none vs 96)"),
        ({"vocabulary": 10}, "not compared: other vocabulary (10 vs 96)"),
        ({"parameters": 2000}, "not compared: other number of parameters (2000 vs 1000)"),
    ],
)
def test_unlike_runs_have_a_sentence_instead_of_a_gap(sweep: Folder, other: dict[str, Any], words: str) -> None:
    write_run(sweep, "bf16", {50: 2.5, 100: 2.0}, info=HASHES)
    write_run(sweep, "like", {50: 2.5, 100: 2.25}, config={"format": "E4M3"}, info=HASHES)
    write_run(sweep, "unlike", {50: 0.05}, config={"format": "E5M2"}, info=HASHES | other)
    rows = rows_of(sweep)
    assert (rows["unlike"].gap, rows["unlike"].baseline, rows["unlike"].pairing) == (None, None, words)
    assert (rows["like"].gap, rows["like"].gap_step, rows["like"].pairing) == (0.25, 100, "")
    table = list(rows.values())
    plain = re.sub(r"\\(?=\W)", "", comparison_markdown(table))
    page = parse(html_report(sweep, 0.0)).one("section", **{"aria-labelledby": "comparison"}).text
    for text in (plain, comparison_csv(table), page, re.sub(r"\\(?=\W)", "", sweep_report(sweep))):
        assert words in text
    assert "-2.45" not in page


def test_each_model_of_a_folder_is_held_against_its_own_baseline(sweep: Folder) -> None:
    image = {"vocabulary": None, "parameters": 5, "initial_weights_hash": "ff", "batches_hash": "ee"}
    for kind, info, loss in (("text", HASHES, 3.0), ("image", image, 0.03)):
        write_run(sweep, f"{kind}-bf16", {100: loss}, info=info)
        write_run(sweep, f"{kind}-e4m3", {100: loss + 0.5}, config={"format": "E4M3"}, info=info)
    rows = rows_of(sweep)
    assert all(rows[f"{kind}-bf16"].is_baseline for kind in ("text", "image"))
    assert [rows[f"{kind}-e4m3"].gap for kind in ("text", "image")] == pytest.approx([0.5, 0.5])


def test_an_older_folder_without_hashes_is_compared_and_says_so(sweep: Folder) -> None:
    write_run(sweep, "bf16", {100: 2.0})
    write_run(sweep, "e4m3", {100: 2.25}, config={"format": "E4M3"}, info=HASHES)
    row = rows_of(sweep)["e4m3"]
    assert (row.gap, row.pairing) == (0.25, "hashes not recorded")
