"""The gap and its step against figures that pandas and scipy compute from the parquet parts.

The oracle reads the folders itself: parts, `run.json` and `end.json`, none of it through the library.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from altgrad.compare import (
    by_group,
    comparison,
    comparison_csv,
    paired_gap,
    rescue_matrix,
)
from altgrad.html import html_report
from altgrad.report import sweep_report
from altgrad.results import Verdict, list_runs
from altgrad.storage.folder import Folder
from dashboard.data.sweep_frame import csv_of, group_frame
from dashboard.figures.group_figures import learning_rate_figure, pareto_figure, survival_figure
from tests.references.gap_oracle import oracle, two_rates
from tests.support.html_tree import parse
from tests.support.results.written_runs import COLLAPSED, rows_of, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


def test_every_gap_is_at_the_last_step_that_all_runs_alive_have_measured(sweep: Folder) -> None:
    two_rates(sweep)
    expected = oracle(sweep)
    rows = rows_of(sweep)
    assert set(rows) == set(expected.index)
    for name, want in expected[expected.format != "BF16"].iterrows():
        assert (rows[name].gap, rows[name].gap_step) == (pytest.approx(want.gap, nan_ok=True), want.gap_step), name
    assert {row.gap_step for row in rows.values() if row.alive and not row.is_baseline} == {80}
    assert rows["e5m2-2-0.0003"].gap_step == 30
    records = {record["run"]: record for record in csv.DictReader(io.StringIO(comparison_csv(list(rows.values()))))}
    for name, record in records.items():
        if expected.loc[name, "format"] != "BF16":
            assert float(record["gap"]) == pytest.approx(expected.loc[name, "gap"])
            assert int(record["gap_step"]) == expected.loc[name, "gap_step"]


def test_a_dead_runs_gap_and_that_to_a_dead_baseline_are_at_their_own_last_common_step(sweep: Folder) -> None:
    for seed in (1, 2):
        at = {"seed": seed, "max_steps": 100}
        whole = {step: 2.0 + step for step in range(10, 101, 10)}
        ends = {step: loss for step, loss in whole.items() if seed == 1 or step <= 40}
        dead: dict[str, Any] = {} if seed == 1 else {"status": "collapsed", "verdict": COLLAPSED}
        write_run(sweep, f"bf16-{seed}", ends, config=at, **dead)
        write_run(sweep, f"e4m3-{seed}", {step: loss + 1 for step, loss in whole.items()},
                  config=at | {"format": "E4M3"})  # fmt: skip
    under_way = {step: 2.0 for step in range(10, 71, 10)}
    write_run(sweep, "e5m2", under_way, config={"seed": 1, "max_steps": 100, "format": "E5M2"}, status=None)
    late = {step: 2.0 for step in range(10, 91, 10)}
    write_run(sweep, "e7m0", late, config={"seed": 1, "max_steps": 100, "format": "E7M0"}, status="collapsed",
              verdict=Verdict(95, "stalled", "loss", 1.0, 2.0))  # fmt: skip
    write_run(sweep, "e6m1", under_way, config={"seed": 1, "max_steps": 100, "format": "E6M1"}, status="collapsed",
              verdict=Verdict(75, "stalled", "loss", 1.0, 2.0))  # fmt: skip
    rows = rows_of(sweep)
    assert {name: row.gap_step for name, row in rows.items() if not row.is_baseline} == {
        "e4m3-1": 70,  # all that are alive have measured it
        "e5m2": 70,
        "e4m3-2": 40,  # alive, but its baseline died
        "e7m0": 90,  # dead, but it came further
        "e6m1": 70,  # dead, and by chance at the common step
    }
    assert [rows[name].final_gap for name in ("e4m3-1", "e4m3-2", "e5m2", "e7m0", "e6m1")] == [
        *(1.0, None, -70.0, None, None)
    ]


def test_a_gap_to_a_baseline_that_trained_on_after_its_verdict_is_in_no_mean(sweep: Folder) -> None:
    """With `stop_on_collapse: false` it reaches the common step, where any format is far better than it."""
    for seed in (1, 2, 3):
        at = {"seed": seed, "max_steps": 100, "stop_on_collapse": False}
        dead: dict[str, Any] = {"status": "collapsed", "verdict": COLLAPSED} if seed == 2 else {}
        write_run(sweep, f"bf16-{seed}", {50: 3.0, 100: 9.0 if dead else 2.0}, config=at, **dead)
        write_run(sweep, f"e4m3-{seed}", {50: 3.1, 100: 2.1}, config=at | {"format": "E4M3"})
    rows = rows_of(sweep)
    assert rows["e4m3-2"].gap == pytest.approx(2.1 - 9.0)  # the last that both measured, as for any dead pair
    gap = paired_gap([rows[f"e4m3-{seed}"] for seed in (1, 2, 3)])
    assert (gap.n, gap.lost) == (2, 1) and gap.mean == pytest.approx(0.1)


def test_a_groups_mean_and_interval_join_gaps_of_one_step_only(sweep: Folder) -> None:
    two_rates(sweep)
    expected = oracle(sweep)
    groups = {(m[0].format, m[0].learning_rate): m for m in by_group(comparison(list_runs(sweep)[0])).values()}
    assert len(groups) == 6
    frame = group_frame(comparison(list_runs(sweep)[0])).set_index("group")
    for (fmt, rate), members in groups.items():
        if fmt == "BF16":
            continue
        of_group = expected[(expected.format == fmt) & (expected.rate == rate)]
        gaps = of_group[of_group.final == True].gap.astype(float)  # noqa: E712  (a column of objects)
        low, high = stats.t.interval(0.95, len(gaps) - 1, loc=gaps.mean(), scale=stats.sem(gaps))
        gap = paired_gap(members)
        assert (gap.mean, gap.low, gap.high) == pytest.approx((gaps.mean(), low, high))
        assert (gap.step, gap.runs, gap.collapsed) == (80, 3, sum(of_group.status == "collapsed"))
        said = f"{gaps.mean():+.3f} nats [{low:+.3f}, {high:+.3f}] at step 80, n = {len(gaps)}"
        assert gap.sentence.startswith(said)
        reached_nan = sum(math.isnan(losses.get(100, 0.0)) for losses in of_group.losses)
        ends = f"{reached_nan} of 3 reached NaN or inf" if reached_nan else f"{gap.collapsed} of 3 collapsed"
        assert ends in gap.sentence
        row = frame.loc[members[0].group_label]
        assert (row["gap"], row["gap_step"], row["collapsed"]) == (pytest.approx(gaps.mean()), 80, gap.collapsed)
        ends = [losses[100] for losses in of_group[of_group.status == "completed"].losses]
        assert row["validation_loss"] == pytest.approx(np.mean(ends), nan_ok=True), "losses of step 100 alone"


def test_two_learning_rates_are_two_cells_two_curves_two_points_and_two_lines(sweep: Folder) -> None:
    two_rates(sweep)
    rows = comparison(list_runs(sweep)[0])
    labels = {"E4M3, lr 3e-4", "E4M3, lr 0.01", "E5M2, lr 3e-4", "E5M2, lr 0.01", "BF16, lr 3e-4", "BF16, lr 0.01"}
    assert {row.group_label for row in rows} == labels
    assert {f"{fmt}, {treatment}" for fmt, treatment, _ in rescue_matrix(rows)} == labels
    assert {trace.name for trace in pareto_figure(rows).data} == labels
    assert [trace.name for trace in survival_figure(rows).data if trace.mode == "lines"] == [
        "E5M2, lr 3e-4 (1 of 3 collapsed)"
    ]
    lines = {trace.name: list(trace.x) for trace in learning_rate_figure(rows).data if trace.mode == "lines"}
    assert lines == {"BF16": [3e-4, 1e-2], "E4M3": [3e-4], "E5M2": []}  # only where all runs ended well
    csv_heads = comparison_csv(rows).splitlines()[0].split(",")
    assert "setting" in csv_heads
    page = parse(html_report(sweep, 0.0))
    legend = {item.text for item in page.one("section", **{"aria-labelledby": "rescues"}).all("th")}
    assert labels - legend <= {label for label in labels if label.startswith("BF16")}
    for label in labels:
        assert label in csv_of(group_frame(rows))
        assert label in sweep_report(sweep) or label.startswith("BF16")
