"""The data behind the matrix, the Pareto front, survival, heat maps, forensics and the format explorer."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from altgrad.compare import Row, comparison, rescue_matrix
from altgrad.config.train_config import load_config
from altgrad.formats import FORMATS, SPLITS
from altgrad.metrics import METRICS
from altgrad.report import failure_report
from altgrad.report.evidence import Evidence
from altgrad.results import list_runs
from altgrad.results.reading.curves import measured
from altgrad.text.foreign_text import as_file_name
from dashboard.data.sweep_frame import csv_of, frame_of, group_frame, run_frame, sparkline
from dashboard.data.watched_sweep import WatchedSweep
from dashboard.figures.format_figures import codes, equivalences, facts, sample_figure
from dashboard.figures.group_figures import cell_text, matrix_axes, matrix_figure, pareto, survival_figure
from dashboard.figures.signal_strips import alike, bands, first_layers, signals_of, strips, strips_figure
from dashboard.views.overview import best_sentence
from dashboard.views.run import reproduce
from tests.support.results import generated_results as generated

EIGHT_BITS = SPLITS


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> WatchedSweep:
    opened = WatchedSweep(generated.mixed_sweep(tmp_path_factory.mktemp("results")))
    opened.refresh()
    return opened


@pytest.fixture(scope="module")
def rows(sweep: WatchedSweep) -> list[Row]:
    return comparison(sweep.runs)


def test_matrix_has_a_bar_per_cell_that_says_what_survived(rows: list[Row]) -> None:
    cells = rescue_matrix(rows)
    formats, interventions = matrix_axes(cells)
    assert interventions == ["none", "clip", "shift", "clip+shift"]
    (bars,) = matrix_figure(cells).data
    assert len(bars.x) == len(cells)
    for key, column, base, text in zip(bars.customdata, bars.x, bars.base, bars.text, strict=True):
        fmt, variant, intervention = key.split("\t")
        assert interventions[column] == intervention
        assert formats[round(base + 0.47)] == (fmt, variant)
        assert text == cell_text(cells[fmt, variant, intervention])
    assert cell_text(cells["E7M0", "", "clip"]).startswith("<b>0 of 3</b>")
    assert "collapse at 80" in cell_text(cells["E7M0", "", "clip"])


def test_matrix_hatches_cells_of_fewer_than_three_ended_runs(rows: list[Row]) -> None:
    cells = rescue_matrix(rows)
    (bars,) = matrix_figure(cells).data
    hatched = {key for key, shape in zip(bars.customdata, bars.marker.pattern.shape, strict=True) if shape}
    assert hatched == {"\t".join(key) for key, cell in cells.items() if cell.ended < 3}
    assert "E0M7\t\tnone" in hatched and "E7M0\t\tnone" not in hatched


def test_cell_without_ended_runs_is_neither_survival_nor_collapse(rows: list[Row]) -> None:
    (bars,) = matrix_figure(rescue_matrix(rows)).data
    colours = dict(zip(bars.customdata, bars.marker.color, strict=True))
    killed, saved, lost = (
        colours[f"{name}\t\t{by}"] for name, by in (("E6M1", "none"), ("E7M0", "shift"), ("E7M0", "none"))
    )
    assert len({killed, saved, lost}) == 3


def test_pareto_front_is_who_nobody_beats_on_bits_and_loss(rows: list[Row]) -> None:
    def group(name: str, gap: float) -> Row:
        measured = {"is_baseline": False, "gap": gap, "gap_step": 120, "common_step": 120, "seed": 1}
        return replace(rows[0], run=name, group=name, format=name, variant="", **measured)

    points = pareto(
        [group("E4M3", 0.2), group("E3M2", 0.3), group("E5M2", 0.4), group("E2M1", 0.9), group("E2M3", 0.35)]
    )
    best = {row.format for row, _, _, is_best in points if is_best}
    assert best == {"E4M3", "E3M2", "E2M1"}
    assert {row.format: bits for row, bits, _, _ in points} == {"E4M3": 8, "E3M2": 6, "E5M2": 8, "E2M1": 4, "E2M3": 6}


def test_survival_falls_at_each_collapse(rows: list[Row]) -> None:
    def one(name: str, step: int, collapsed: bool) -> Row:
        status: Any = "collapsed" if collapsed else "completed"
        return replace(
            rows[0], run=name, format="E7M0", status=status, step=step, collapse_step=step if collapsed else None
        )

    figure = survival_figure([one("a", 10, True), one("b", 20, True), one("c", 30, False), one("d", 15, False)])
    steps = figure.data[0]
    assert list(steps.x) == [0, 10, 20, 30] and steps.line.shape == "hv"
    assert list(steps.y) == [1.0, 0.75, 0.375, 0.375]  # 3 of 4, then 1 of 2 at risk
    assert sorted(figure.data[1].x) == [15, 30]


def test_best_format_is_named_with_its_interval(rows: list[Row]) -> None:
    sentence = best_sentence(rows)
    assert sentence.startswith("**E3M4**") and "n = 3" in sentence
    assert "BF16 runs only" in best_sentence([row for row in rows if row.is_baseline])


def test_group_row_is_that_of_its_seeds_alone(rows: list[Row]) -> None:
    whole = group_frame(rows).set_index("group")
    fewer = group_frame([row for row in rows if row.format != "E5M2"]).set_index("group")
    pd.testing.assert_frame_equal(fewer, whole.drop(index="E5M2"))
    assert whole.loc["E7M0 · clip", "collapsed"] == 3


def test_run_table_has_absent_values_as_absent(sweep: WatchedSweep, rows: list[Row]) -> None:
    frame = run_frame(rows, sweep).set_index("run")
    assert len(frame) == len(rows)
    assert pd.isna(frame.loc["bf16_lr0.0006_s1", "gap"])
    assert pd.isna(frame.loc["bf16_lr0.0006_s1", "collapse_step"])
    assert frame.loc["e7m0_lr0.0006_s1", "collapse_step"] == 80
    assert frame.loc["e7m0_lr0.0006_s1", "progress"] == pytest.approx(100 * 80 / 120)


def test_a_frame_tells_nan_from_what_was_not_measured_and_so_does_its_csv() -> None:
    frame = frame_of([{"a": 1.5, "n": 1}, {"a": float("nan"), "n": None}, {"a": None, "n": 3}, {"a": float("inf")}])
    assert frame["a"].isna().tolist() == [False, False, True, False]
    assert csv_of(frame).splitlines() == ["a,n", "1.5,1", "nan,", ",3", "inf,"]


def test_sparkline_has_finite_values_only(sweep: WatchedSweep) -> None:
    run = sweep.run("e5m2_lr0.0006_s4")
    assert run is not None
    points = sparkline(measured(run.table("steps", ["loss"]), "loss"))
    assert 2 < len(points) <= 62 and np.isfinite(points).all()


def test_command_reproduces_the_config(sweep: WatchedSweep, tmp_path: Path) -> None:
    run = sweep.run("e7m0_clip_shift_lr0.0006_s2")
    assert run is not None
    command = reproduce(run)
    written = command.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    file = tmp_path / "run.yaml"
    file.write_text(written)
    assert load_config(file).model_dump() == dict(run.config)
    assert command.splitlines()[-1] == f"python -m altgrad train {run.name}.yaml --out reproduced/{run.name}"


@pytest.mark.parametrize("name", ["x'; touch hacked; '", "$(touch hacked)", "-rf", "../up", "a\nEND\ntouch hacked"])
def test_command_of_a_hostile_run_runs_nothing_else(sweep: WatchedSweep, tmp_path: Path, name: str) -> None:
    run = sweep.run("e7m0_clip_shift_lr0.0006_s2")
    assert run is not None
    hostile = replace(run, info={**run.info, "run": name, "git_commit": f"; {name}", "config": {"data": name}})
    script = "python() { printf '%s\\n' \"$@\" > words; }\n" + reproduce(hostile)
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    file, words = as_file_name(name) + ".yaml", (tmp_path / "words").read_text().splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file, "words"])
    assert words == ["-m", "altgrad", "train", file, "--out", f"reproduced/{as_file_name(name)}"]
    assert yaml.safe_load((tmp_path / file).read_text()) == {"data": name}


# failures


def evidence(sweep: WatchedSweep, name: str) -> Evidence:
    run = sweep.run(name)
    assert run is not None
    return Evidence.of(run)


def test_strips_are_in_the_order_in_which_the_report_says_that_the_signals_moved(sweep: WatchedSweep) -> None:
    found = evidence(sweep, "e7m0_lr0.0006_s1")
    signals = signals_of(found)
    names = strips(found, signals)
    listed = failure_report(found.run).partition("## What moved first")[2].partition("\n\nStayed")[0]
    cells = [line.split("|") for line in listed.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [METRICS[name].axis_in("nats") for name in names] == [cell[2].strip() for cell in cells][: len(names)]
    assert "realised_displacement" in names, "the verdict's own metric"
    figure = strips_figure(found, signals)
    assert figure.layout.shapes[0].x0 == 80
    limits = [shape for shape in figure.layout.shapes if shape.type == "line" and shape.y0 == shape.y1 == 0.1]
    assert len(limits) == 1, "the rule's limit is drawn in the strip of its metric"


def test_layers_that_went_first_come_first(sweep: WatchedSweep) -> None:
    found = first_layers(evidence(sweep, "e7m0_lr0.0006_s1"))
    steps = [departure.step for _, _, departure in found]
    assert steps == sorted(steps) and steps[0] == 60
    assert len({(layer, site) for layer, site, _ in found}) == len(found)


def test_runs_that_failed_alike_share_the_rule(rows: list[Row]) -> None:
    collapsed = [row for row in rows if row.collapse_step is not None]
    stalled = next(row for row in collapsed if row.collapse_rule == "stalled")
    found = alike(stalled, collapsed)
    assert len(found) == 5 and all(row.collapse_rule == "stalled" and row.run != stalled.run for row in found)
    assert alike(next(row for row in collapsed if row.format == "E0M7"), collapsed) == []


# formats


def test_equal_grids_are_said_to_be_equal() -> None:
    (sentence,) = equivalences({fmt.name: fmt for fmt in EIGHT_BITS})
    assert sentence.startswith("E1M6 is E0M7 times 4")
    assert equivalences({"E4M3": FORMATS["E4M3"]}) == []


def test_codes_list_every_finite_magnitude() -> None:
    listed = codes(FORMATS["E4M3"])
    assert len(listed) == 127
    assert listed[-1] == {
        "Index": 126,
        "Exponent field": "1111",
        "Mantissa field": "110",
        "Code": "01111110",
        "Value": 448.0,
        "Distance to the next": None,
    }
    assert facts(FORMATS["E4M3"])["Largest"] == "448" and facts(FORMATS["E0M7"])["ULP at 1"] == "out of range"


def test_sample_is_shown_beside_what_the_format_would_hold() -> None:
    figure = sample_figure(np.array([0.5, -1.5, np.nan, 3.0]), FORMATS["E7M0"], scale=1.0)
    trained, held = figure.data
    assert list(trained.y) == [-1.5, 0.5, 3.0]
    assert list(held.y) == [-2.0, 0.5, 2.0]  # ties to the even exponent field


def test_stored_runs_can_be_read_by_everybody(sweep: WatchedSweep) -> None:
    """The dashboard's runs and those of the plain reader say the same."""
    plain, broken = list_runs(sweep.folder)
    assert {run.name for run in plain} == {run.name for run in sweep.runs} and broken.keys() == sweep.broken.keys()
    assert {row.run: row.gap for row in comparison(plain)} == {row.run: row.gap for row in comparison(sweep.runs)}
    assert [run.status for run in plain] == [run.status for run in sweep.runs]


@pytest.mark.parametrize("count", range(1, 60))
def test_any_number_of_strips_fills_the_figure_and_leaves_it_nowhere(count: int) -> None:
    edges = bands(count)
    assert edges[0][1] == 1 and edges[-1][0] == 0
    assert all(0 <= bottom < top <= 1 for bottom, top in edges)
    assert all(above[0] == below[1] for above, below in itertools.pairwise(edges))
