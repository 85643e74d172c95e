"""Comparison over runs, on folders written by hand through RunWriter."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from altgrad.compare import (
    Row,
    by_group,
    comparison,
    comparison_csv,
    comparison_markdown,
    comparison_table,
    config_difference,
    paired_gap,
    rescue_matrix,
    survival,
    write_comparison,
)
from altgrad.compare.pairing import DEFAULTS, MEASURING, NUMERICS, RESCUE, RUNNING
from altgrad.results import Run, RunWriter, Status, Verdict, list_runs
from altgrad.storage import Folder
from altgrad.training.config import TrainConfig

NAN = math.nan


def write_run(
    sweep: Folder,
    name: str,
    losses: dict[int, float],
    *,
    config: dict[str, Any] | None = None,
    intervention: str = "none",
    status: Status | None = "completed",
    verdict: Verdict | None = None,
    events: list[tuple[int, str, dict[str, Any]]] | None = None,
    **metrics: dict[int, float],
) -> None:
    """A run whose metrics are given as step -> value; a step without a value is not measured there."""
    writer = RunWriter(sweep / name, flush_seconds=1e9)
    full = TrainConfig(**(config or {})).model_dump()
    writer.start({"run": name, "sweep": sweep.name, "config": full, "intervention": intervention})
    curves = {"validation_loss": losses, **metrics}
    for step in sorted({step for curve in curves.values() for step in curve}):
        writer.step({"step": step} | {metric: curve[step] for metric, curve in curves.items() if step in curve})
    for step, kind, detail in events or []:
        writer.event(step, kind, **detail)
    if status is None:
        writer.flush()
    else:
        writer.end(status, verdict, {})


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


def rows_of(sweep: Folder) -> dict[str, Row]:
    return {row.run: row for row in comparison(list_runs(sweep)[0])}


def test_a_row_holds_what_its_run_measured(sweep: Folder) -> None:
    write_run(
        sweep,
        "e7m0",
        {1: 5.5, 50: 3.0, 100: 3.25},
        config={"format": "E7M0", "learning_rate": 1e-3, "max_steps": 200, "enable_emergency_shift": True},
        intervention="shift",
        status="collapsed",
        verdict=Verdict(90, "stalled", "realised_displacement", 0.02, 0.1),
        events=[
            (10, "clip", {}),
            (11, "clip", {}),
            (60, "format_shift", {"from": "E7M0", "to": "E5M2", "trigger": "stall"}),
            (90, "verdict", {}),
        ],
        tokens_per_second={1: 10.0, 50: 1000.0, 100: 1200.0},
        stall_rate={50: 0.9, 100: 0.95},
        overflow_rate={1: 0.0, 50: 0.01, 100: 0.02},
        elapsed_seconds={1: 0.5, 50: 20.0, 100: 40.0},
    )
    row = rows_of(sweep)["e7m0"]
    assert (row.format, row.intervention, row.seed, row.learning_rate) == ("E7M0", "shift", 42, 1e-3)
    assert (row.validation_loss, row.best_validation_loss) == (3.25, 3.0)
    assert (row.gap, row.gap_step) == (None, None)
    assert (row.status, row.collapse_step, row.collapse_rule) == ("collapsed", 90, "stalled")
    assert row.reason == "stalled at step 90: realised_displacement 0.02, limit 0.1"
    assert (row.acts, row.shifted_to) == ({"clip": 2, "format_shift": 1}, "E5M2")
    assert (row.tokens_per_second, row.stall_rate) == (1000.0, 0.95)
    assert row.overflow_rate == pytest.approx(0.01)
    assert (row.step, row.max_steps, row.seconds) == (100, 200, 40.0)


def test_what_was_not_measured_is_absent_and_nan_stays_nan(sweep: Folder) -> None:
    write_run(sweep, "nothing", {}, status=None)
    write_run(sweep, "nan", {50: 3.0, 100: NAN})
    rows = rows_of(sweep)
    nothing = rows["nothing"]
    assert nothing.validation_loss is None and nothing.stall_rate is None and nothing.seconds is None
    assert (nothing.step, nothing.status) == (0, "running")
    assert rows["nan"].validation_loss is not None and math.isnan(rows["nan"].validation_loss)
    assert rows["nan"].best_validation_loss == 3.0


def test_rows_are_sorted_by_loss_with_non_finite_and_absent_ones_last(sweep: Folder) -> None:
    for name, losses in {"a": {}, "b": {1: NAN}, "c": {1: 3.0}, "d": {1: math.inf}, "e": {1: 2.0}}.items():
        write_run(sweep, name, losses)
    assert [row.run for row in comparison(list_runs(sweep)[0])] == ["e", "c", "b", "d", "a"]
