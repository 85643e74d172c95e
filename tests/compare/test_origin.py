"""Runs that trained something else get a sentence instead of a number, and so do runs that round another share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from altgrad.storage.folder import Folder
from tests.support.results.written_runs import HASHES, rows_of, write_run

LOSSES = {100: 3.0, 200: 2.5}


def coverage(share: float | None) -> dict[str, Any]:
    return {"share": share, "total_flops": 1000, "rounded_flops": 0, "modules": [], "note": ""}


def compared(tmp_path: Path, baseline: dict[str, Any], info: dict[str, Any], **config: Any) -> Any:
    sweep = Folder.at(tmp_path)
    write_run(sweep, "bf16", LOSSES, config={"format": "BF16"}, info=HASHES | baseline)
    write_run(sweep, "e4m3", LOSSES, config={"format": "E4M3", **config}, info=HASHES | info)
    return rows_of(sweep)["e4m3"]


@pytest.mark.parametrize(
    ("baseline", "info", "said"),
    [
        ({"task_hash": "aa"}, {"task_hash": "bb"}, "not compared: other task (bb vs aa)"),
        ({}, {"initial_weights_hash": "b" * 16}, "not compared: other initial weights (bbbbbbbb… vs a1b2a1b2…)"),
        (
            {"coverage": coverage(0.98)},
            {"coverage": coverage(0.1)},
            "not compared: 10% of the GEMM FLOPs are rounded vs 98%",
        ),
    ],
)
def test_runs_of_other_tasks_weights_or_coverage_get_a_sentence(
    baseline: dict[str, Any], info: dict[str, Any], said: str, tmp_path: Path
) -> None:
    row = compared(tmp_path, baseline, info)
    assert row.gap is None and row.pairing == said


def test_coverage_that_the_config_explains_is_named_beside_the_gap(tmp_path: Path) -> None:
    row = compared(
        tmp_path, {"coverage": coverage(0.98)}, {"coverage": coverage(0.6)}, layer_formats={"lm_head": "BF16"}
    )
    assert row.gap == 0.0 and "60% of the GEMM FLOPs are rounded vs 98%" in row.confounds


@pytest.mark.parametrize("share", [None, 0.985])
def test_coverage_that_is_alike_or_not_recorded_forbids_nothing(share: float | None, tmp_path: Path) -> None:
    row = compared(tmp_path, {"coverage": coverage(0.98), "task_hash": "aa"}, {"coverage": coverage(share)})
    assert row.gap == 0.0 and row.pairing == ""
