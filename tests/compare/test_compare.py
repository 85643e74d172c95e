"""Comparison over runs, on folders written by hand through RunWriter."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from altgrad.compare import (
    Row,
    Shown,
    by_group,
    comparison,
    comparison_csv,
    comparison_markdown,
    comparison_table,
    config_difference,
    pair,
    paired_gap,
    read_row,
    write_comparison,
)
from altgrad.compare.pairing import DEFAULTS, MEASURING, NUMERICS, RESCUE, RUNNING
from altgrad.config.train_config import TrainConfig
from altgrad.results import Run, RunWriter, Verdict, list_runs
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import rows_of, write_run

NAN = math.nan


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


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
    assert row.reason == "stalled at step 90: realised displacement 0.02, limit 0.1"
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


def test_events_of_steps_that_a_restored_run_repeated_count_once(sweep: Folder) -> None:
    for attempt, steps in ((0, range(1, 31)), (1, range(21, 41))):
        writer = RunWriter(sweep / "restored", attempt)
        writer.start({"run": "restored", "config": TrainConfig().model_dump()})
        if attempt:
            writer.event(20, "restore", step=20)
        for step in steps:
            writer.step({"step": step, "loss": 1.0})
            if step in (10, 20, 21, 25, 35):
                writer.event(step, "clip")
        writer.flush()
    row = rows_of(sweep)["restored"]
    assert row.acts == {"clip": 5}  # 10 and 20 of the first attempt, 21, 25 and 35 of the second
    assert row.step == 40


def test_a_folder_without_a_config_is_named_and_the_others_are_compared(sweep: Folder) -> None:
    write_run(sweep, "good", {1: 2.0})
    (sweep / "odd").write_json("run.json", {"schema": 1, "run": "odd"})
    runs, broken = list_runs(sweep)
    assert [row.run for row in comparison(runs)] == ["good"]
    assert "it lacks config" in broken["odd"]


def test_a_part_that_cannot_be_read_costs_its_own_rows_only(sweep: Folder) -> None:
    write_run(sweep, "run", {1: 3.0, 2: 2.0})
    (sweep / "run" / "steps").write_bytes("part-000-000099.parquet", b"PAR1 cut off")
    assert rows_of(sweep)["run"].validation_loss == 2.0


def test_rows_read_before_pair_as_if_read_now(sweep: Folder) -> None:
    write_run(sweep, "e4m3", {10: 2.5}, config={"format": "E4M3"})
    kept = [read_row(run) for run in list_runs(sweep)[0]]
    assert pair(kept)[0].gap is None
    write_run(sweep, "bf16", {10: 2.0})
    late = [read_row(run) for run in list_runs(sweep)[0] if run.name == "bf16"]
    assert pair([*kept, *late]) == comparison(list_runs(sweep)[0])


# --- pairing


def test_every_config_field_that_pairing_sorts_exists_and_is_sorted_once() -> None:
    kinds = [NUMERICS, RESCUE, MEASURING, RUNNING]
    assert set().union(*kinds) <= TrainConfig.model_fields.keys()
    assert sum(len(kind) for kind in kinds) == len(set().union(*kinds))
    rest = DEFAULTS.keys() - set().union(*kinds)
    assert {"seed", "learning_rate", "batch_size", "model", "data", "max_steps", "eval_batches"} <= rest


def test_a_gap_is_to_the_baseline_of_the_same_seed_and_settings(sweep: Folder) -> None:
    for seed, loss in ((1, 2.0), (2, 3.0)):
        write_run(sweep, f"bf16_{seed}", {100: loss}, config={"seed": seed})
        stored = {
            "format": "E4M3",
            "seed": seed,
            "master_weights": False,
            "log_ulp": True,
            "enable_emergency_shift": True,
        }
        write_run(sweep, f"e4m3_{seed}", {100: loss + seed / 10}, config=stored, intervention="shift")
    write_run(sweep, "other_lr", {100: 2.5}, config={"format": "E4M3", "seed": 1, "learning_rate": 1e-3})
    write_run(sweep, "bf16_stored", {100: 2.25}, config={"seed": 1, "master_weights": False})
    write_run(sweep, "bf16_but_gradient", {100: 2.5}, config={"seed": 1, "gradient_format": "E5M2"})
    rows = rows_of(sweep)
    assert rows["e4m3_1"].gap == pytest.approx(0.1)
    assert rows["e4m3_2"].gap == pytest.approx(0.2)
    assert rows["other_lr"].gap is None
    assert rows["bf16_stored"].gap == pytest.approx(0.25)
    assert rows["bf16_but_gradient"].gap == pytest.approx(0.5)
    assert [name for name, row in rows.items() if row.is_baseline] == ["bf16_1", "bf16_2"]
    assert rows["bf16_1"].gap is None


def test_a_baseline_without_intervention_is_preferred(sweep: Folder) -> None:
    write_run(sweep, "a_bf16_clip", {100: 1.0}, config={"enable_partition_clipping": True}, intervention="clip")
    write_run(sweep, "b_bf16", {100: 2.0})
    rows = rows_of(sweep)
    assert rows["b_bf16"].is_baseline and not rows["a_bf16_clip"].is_baseline
    assert rows["a_bf16_clip"].gap == -1.0 and rows["a_bf16_clip"].baseline == "b_bf16"


@pytest.mark.parametrize(
    ("losses", "gap", "step"),
    [
        ({100: 3.0, 200: 2.5, 300: 2.25}, 0.25, 300),
        ({100: 3.0, 200: 2.75}, 0.5, 200),  # collapsed early: held against the baseline's loss of that step
        ({100: 3.0, 150: 2.75}, 0.5, 100),  # 150 was measured by one of the two only: nothing is interpolated
        ({100: 3.0, 400: 1.0}, 0.5, 100),
        ({100: 3.0, 200: NAN}, NAN, 200),
        ({50: 3.0}, None, None),
        ({}, None, None),
    ],
)
def test_a_collapsed_runs_gap_is_taken_at_the_last_step_that_both_measured(
    sweep: Folder, losses: dict[int, float], gap: float | None, step: int | None
) -> None:
    write_run(sweep, "bf16", {100: 2.5, 200: 2.25, 300: 2.0})
    write_run(sweep, "run", losses, config={"format": "E5M2"}, status="collapsed")
    row = rows_of(sweep)["run"]
    assert row.gap_step == step
    assert (row.gap is None) if gap is None else row.gap == pytest.approx(gap, nan_ok=True)


def test_groups_differ_in_more_than_the_seed(sweep: Folder) -> None:
    write_run(sweep, "a1", {}, config={"format": "E4M3", "seed": 1, "threads": 1})
    write_run(sweep, "a2", {}, config={"format": "E4M3", "seed": 2, "threads": 2})
    write_run(sweep, "b", {}, config={"format": "E4M3", "seed": 1, "learning_rate": 1e-3})
    write_run(sweep, "c", {}, config={"format": "E4M3", "seed": 1}, intervention="clip")
    groups = by_group(comparison(list_runs(sweep)[0])).values()
    assert sorted([row.run for row in group] for group in groups) == [["a1", "a2"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("config", "intervention", "variant"),
    [
        ({}, "none", ""),
        ({"master_weights": False}, "none", "stored"),
        ({"scaling": "none"}, "none", "unscaled"),
        ({"gradient_format": "E5M2"}, "none", "gradient E5M2"),
        ({"scaling": "delayed", "amax_history": 4}, "none", "scaling delayed, amax_history 4"),
        ({"master_weights": False, "update_rounding": "kahan"}, "none", "stored, Kahan update"),
        ({"first_moment": {"format": "E4M3"}}, "none", 'first_moment {"format": "E4M3"}'),
        ({"layer_formats": {"lm_head": "BF16"}}, "none", 'layer_formats {"lm_head": "BF16"}'),
        # an intervention stands in the row of what it rescues
        ({"master_weights": True}, "master", "stored"),
        ({"master_weights": False, "update_rounding": "stochastic"}, "stochastic", "stored"),
        ({"enable_emergency_shift": True, "enable_partition_clipping": True}, "clip+shift", ""),
    ],
)
def test_a_variant_names_what_beside_the_format_was_not_default(
    sweep: Folder, config: dict[str, Any], intervention: str, variant: str
) -> None:
    write_run(sweep, "run", {}, config={"format": "E4M3", **config}, intervention=intervention)
    assert rows_of(sweep)["run"].variant == variant


def test_a_config_difference_shows_only_what_differs(sweep: Folder) -> None:
    write_run(sweep, "a", {}, config={"format": "E4M3"})
    write_run(sweep, "b", {}, config={"format": "E5M2", "layer_formats": {"lm_head": "BF16"}})
    runs, _ = list_runs(sweep)
    older = Run(runs[0].folder, {"run": "older", "config": {"format": "E4M3", "gone": 1}}, None)
    assert config_difference(runs) == {
        "format": {"a": "E4M3", "b": "E5M2"},
        "layer_formats": {"a": {}, "b": {"lm_head": "BF16"}},
    }
    assert config_difference([runs[0], older])["gone"] == {"older": 1}
    assert config_difference(runs[:1]) == {}


def test_hiding_a_run_changes_no_other_groups_statistics(sweep: Folder) -> None:
    for seed in (1, 2, 3):
        write_run(sweep, f"bf16_{seed}", {10: 2.0}, config={"seed": seed})
        for fmt in ("E4M3", "E5M2"):
            write_run(sweep, f"{fmt}_{seed}", {10: 2.0 + seed / 7}, config={"seed": seed, "format": fmt})
    rows = comparison(list_runs(sweep)[0])
    everything = {key: paired_gap(group) for key, group in by_group(rows).items()}
    for hidden in rows:
        rest = by_group(row for row in rows if row is not hidden)
        for key in everything.keys() - {hidden.group}:
            assert paired_gap(rest[key]) == everything[key]


# --- files and terminal


@pytest.fixture
def mixed(sweep: Folder) -> list[Row]:
    write_run(sweep, "bf16", {50: 2.5, 100: 2.123456789}, tokens_per_second={1: 12345.678})
    write_run(sweep, "nan", {50: 2.5, 100: NAN}, config={"format": "E7M0"}, status="collapsed",
              verdict=Verdict(99, "non_finite", "loss", NAN, math.inf))  # fmt: skip
    write_run(sweep, "shift|ed", {50: 2.6, 100: 2.25}, config={"format": "E4M3", "enable_emergency_shift": True},
              intervention="shift", events=[(9, "format_shift", {"from": "E4M3", "to": "E5M2"})],
              overflow_rate={1: 0.0123456})  # fmt: skip
    write_run(sweep, "empty", {}, config={"format": "E5M2"}, status=None)
    return comparison(list_runs(sweep)[0])


def test_csv_and_markdown_are_the_same_table_and_the_csv_has_every_digit(sweep: Folder, mixed: list[Row]) -> None:
    write_comparison(sweep, Shown(mixed))
    runs, _ = sweep.read_bytes("comparison.md").decode().split("## Parity")
    lines = [line for line in runs.splitlines() if line.startswith("|")]
    head, _, *cells = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    records = list(csv.DictReader(io.StringIO(sweep.read_bytes("comparison.csv").decode())))
    assert [cell[0].replace("\\|", "|") for cell in cells] == [record["run"] for record in records]
    assert {record.pop("hidden") for record in records} == {""}
    assert len(head) == len(records[0]) and len(cells) == len(records) == len(mixed)
    for line, record, row in zip(cells, records, mixed, strict=True):
        for shown, (name, exact) in zip(line, record.items(), strict=True):
            if exact == "":
                assert shown in ("–", "baseline")
            elif name in ("validation_loss", "best_validation_loss", "gap"):
                assert math.isclose(float(shown), float(exact), rel_tol=1e-3, abs_tol=1e-4) or shown == "NaN"
                value = getattr(row, name)
                assert float(exact) == value or math.isnan(value)
    assert records[0]["validation_loss"] == "2.123456789"


def test_the_terminal_table_says_what_matters_and_moves_what_is_equal_into_the_caption(mixed: list[Row]) -> None:
    console = Console(width=240, file=io.StringIO(), color_system=None)
    console.print(comparison_table(mixed))
    text = console.file.getvalue()
    for said in ("2.123", "baseline", "+0.1265", "NaN", "format shift 1 (to E5M2)", "non_finite, step 99", "1.23 %"):
        assert said in text
    assert "seed 42" in text and "learning rate 0.0006" in text and "Seed" not in text
    console.print(comparison_table([]))


def test_an_empty_comparison_is_an_empty_table() -> None:
    assert comparison([]) == []
    assert comparison_csv([]).count("\n") == 1
    assert len(comparison_markdown([]).splitlines()) == 2


def test_a_run_that_failed_or_was_stopped_says_why(tmp_path: Path) -> None:
    for name, status, summary in (
        ("a", "failed", {"error": "OSError: full"}),
        ("b", "stopped", {"reason": "asked to"}),
    ):
        writer = RunWriter(Folder.at(tmp_path) / name)
        writer.start({"run": name, "config": TrainConfig().model_dump(mode="json")})
        writer.end(status, None, summary)  # type: ignore[arg-type]
    rows = {row.run: row for row in comparison(list_runs(Folder.at(tmp_path))[0])}
    assert (rows["a"].reason, rows["b"].reason) == ("OSError: full", "asked to")
    assert rows["a"].collapse_rule is None


def test_bytes_per_parameter_are_those_of_run_json_and_absent_where_it_has_none(sweep: Folder) -> None:
    write_run(sweep, "new", {}, config={"format": "E4M3"}, info={"bytes_per_parameter": 13.0})
    write_run(sweep, "odd", {}, config={"format": "E3M4"}, info={"bytes_per_parameter": "many"})
    write_run(sweep, "old", {}, config={"format": "E2M5"})
    rows = rows_of(sweep)
    assert [rows[name].bytes_per_parameter for name in ("new", "odd", "old")] == [13.0, None, None]
    text = comparison_csv(list(rows.values())).splitlines()
    place = text[0].split(",").index("bytes_per_parameter")
    assert {line.split(",")[0]: line.split(",")[place] for line in text[1:]} == {"new": "13.0", "odd": "", "old": ""}
