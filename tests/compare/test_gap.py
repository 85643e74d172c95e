"""The gap, its step and who is ranked, against figures that pandas and scipy compute from the parquet parts.

The oracle reads the folders itself: parts, `run.json` and `end.json`, none of it through the library.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from altgrad.compare import (
    Row,
    by_group,
    collapse_step,
    comparison,
    comparison_csv,
    comparison_markdown,
    paired_gap,
    ranking,
    rescue_matrix,
)
from altgrad.compare.pairing import NUMERICS, RUNNING, Settings
from altgrad.config.train_config import TrainConfig
from altgrad.html import html_report
from altgrad.report import sweep_report
from altgrad.results import Verdict, list_runs
from altgrad.show.sweep_progress import best_sentence
from altgrad.storage.folder import Folder
from dashboard.data.sweep_frame import csv_of, group_frame
from dashboard.figures.group_figures import learning_rate_figure, pareto, pareto_figure, survival_figure
from tests.support.html_tree import parse
from tests.support.written_runs import rows_of, write_run

NAN = math.nan
COLLAPSED = Verdict(35, "diverged", "loss", 9.0, 5.0)
HASHES = {"initial_weights_hash": "a1b2a1b2a1b2a1b2", "batches_hash": "77aa77aa77aa77aa", "vocabulary": 96}
HASHES |= {"parameters": 1000}


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


def curve(steps: range, end: float) -> dict[int, float]:
    """A loss that falls from 5 to `end` at the last of the steps."""
    return {step: end + (5 - end) * (1 - step / steps[-1]) for step in steps}


def two_rates(sweep: Folder) -> None:
    """E4M3 and E5M2 over three seeds at two rates, a dead seed, a NaN at the end, NaN in the middle, runs under way."""
    rng = np.random.default_rng(3)
    for seed, rate in itertools.product((1, 2, 3), (3e-4, 1e-2)):
        at = {"seed": seed, "learning_rate": rate, "max_steps": 100}
        write_run(sweep, f"bf16-{seed}-{rate}", curve(range(10, 101, 10), 2.0), config=at, info=HASHES)
        for fmt in ("E4M3", "E5M2"):
            losses = curve(range(10, 101, 10), 2.1 + float(rng.normal(0, 0.01)) + (rate > 1e-3))
            config = at | {"format": fmt}
            name = f"{fmt.lower()}-{seed}-{rate}"
            if (fmt, rate, seed) == ("E5M2", 3e-4, 2):  # dead at 35, when it was ahead of BF16
                early = {step: loss - 2 for step, loss in losses.items() if step <= 30}
                write_run(sweep, name, early, config=config, status="collapsed", verdict=COLLAPSED, info=HASHES)
            elif (fmt, rate, seed) == ("E5M2", 1e-2, 1):
                write_run(sweep, name, losses | {50: NAN, 100: NAN}, config=config, info=HASHES)
            elif (fmt, rate, seed) == ("E4M3", 1e-2, 3):
                under_way = {step: loss for step, loss in losses.items() if step <= 80}
                write_run(sweep, name, under_way | {20: NAN}, config=config, status=None, info=HASHES)
            else:
                write_run(sweep, name, losses, config=config, info=HASHES)


def oracle(sweep: Folder) -> pd.DataFrame:
    """run, format, seed, rate, status, gap, step, final: from the parquet parts alone."""
    found = []
    for path in sorted(Path(sweep.path).iterdir()):
        info = json.loads((path / "run.json").read_text())
        end = json.loads((path / "end.json").read_text()) if (path / "end.json").exists() else None
        parts = pd.concat(pd.read_parquet(part, dtype_backend="pyarrow") for part in sorted((path / "steps").iterdir()))
        losses = {
            int(step): float(loss.as_py() if hasattr(loss, "as_py") else loss)
            for step, loss in zip(parts["step"], parts["validation_loss"].array, strict=True)
            if loss is not pd.NA
        }
        status = "running" if end is None else end["status"]
        config = info["config"]
        found.append({"run": info["run"], "format": config["format"], "seed": config["seed"],
                      "rate": config["learning_rate"], "status": status, "losses": losses})  # fmt: skip
    frame = pd.DataFrame(found).set_index("run")
    baseline = {(row.seed, row.rate): row.losses for row in frame[frame.format == "BF16"].itertuples()}
    alive = frame[frame.status.isin(["completed", "running"])]
    common = max(set.intersection(*(set(losses) for losses in alive.losses)))
    for name, row in frame.iterrows():
        against = baseline[row.seed, row.rate]
        step = common if row.status in ("completed", "running") else max(set(row.losses) & set(against))
        frame.loc[name, "gap"] = row.losses[step] - against[step]
        frame.loc[name, "gap_step"] = step
        frame.loc[name, "final"] = row.status in ("completed", "running")
    return frame


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
        assert gap.sentence.startswith(said) and f"{gap.collapsed} of 3 collapsed" in gap.sentence
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


# --- the dead never win


def dead_and_alive(sweep: Folder, dead_seeds: tuple[int, ...], with_whole: bool) -> list[Row]:
    """E7M0 lies ahead of BF16 until it dies in some seeds; E4M3 (where there is any) is a little behind."""
    for seed in (1, 2, 3):
        at = {"seed": seed, "max_steps": 100}
        write_run(sweep, f"bf16-{seed}", curve(range(10, 101, 10), 2.0), config=at)
        if with_whole:
            write_run(sweep, f"e4m3-{seed}", curve(range(10, 101, 10), 2.1), config=at | {"format": "E4M3"})
        good = curve(range(10, 101, 10), 1.5 + seed / 1000)
        if seed in dead_seeds:
            early = {step: loss for step, loss in good.items() if step <= 30}
            write_run(sweep, f"e7m0-{seed}", early, config=at | {"format": "E7M0"}, status="collapsed",
                      verdict=COLLAPSED)  # fmt: skip
        else:
            write_run(sweep, f"e7m0-{seed}", good, config=at | {"format": "E7M0"})
    return comparison(list_runs(sweep)[0])


@pytest.mark.parametrize("dead", [(2,), (1, 3), (1, 2, 3)])
def test_a_group_with_a_collapse_is_never_best_ahead_or_on_the_front(sweep: Folder, dead: tuple[int, ...]) -> None:
    rows = dead_and_alive(sweep, dead, with_whole=True)
    assert ranking(rows)[0][0][0].format == "E4M3"
    assert best_sentence(rows).startswith("**E4M3**") and "0 of 3 collapsed" in best_sentence(rows)
    assert "E7M0" not in {row.format for row, _, _, best in pareto(rows) if best}
    front = {row.format for row, _, _, best in pareto(rows) if best}
    assert "E4M3" in front, "a dead group takes the front from nobody"
    said = paired_gap([row for row in rows if row.format == "E7M0"]).sentence
    assert f"{len(dead)} of 3 collapsed" in said and "ahead of" not in said and "behind" not in said
    ends_early = [not row.alive for row in rows]
    assert ends_early == sorted(ends_early), "the table begins with the runs that lasted"
    assert "E4M3" in parse(html_report(sweep, 0.0)).one("section", **{"aria-labelledby": "overview"}).text


def test_where_every_group_has_a_collapse_the_best_is_named_as_such(sweep: Folder) -> None:
    rows = dead_and_alive(sweep, (2,), with_whole=False)
    assert "No group is without a collapse" in best_sentence(rows) and "1 of 3 collapsed" in best_sentence(rows)


def test_a_run_that_went_on_after_its_verdict_counts_as_collapsed(sweep: Folder) -> None:
    write_run(sweep, "bf16", {50: 2.0, 100: 1.5})
    write_run(sweep, "e7m0", {50: 2.0, 100: 1.0}, config={"format": "E7M0"}, verdict=COLLAPSED)
    rows = comparison(list_runs(sweep)[0])
    cell = rescue_matrix(rows)["E7M0", "", "none"]
    assert (cell.survived, cell.ended, cell.gap.mean) == (0, 1, None)
    assert "needs a BF16 run" in best_sentence(rows)


def test_a_run_that_ended_in_nan_makes_its_group_no_winner(sweep: Folder) -> None:
    for seed in (1, 2):
        write_run(sweep, f"bf16-{seed}", {100: 2.0}, config={"seed": seed})
        write_run(sweep, f"e4m3-{seed}", {100: 2.1}, config={"seed": seed, "format": "E4M3"})
        losses = {100: 1.0 if seed == 1 else NAN}
        write_run(sweep, f"e5m2-{seed}", losses, config={"seed": seed, "format": "E5M2"})
    rows = comparison(list_runs(sweep)[0])
    assert best_sentence(rows).startswith("**E4M3**")
    assert {row.format for row, _, _, best in pareto(rows) if best} >= {"E4M3"}
    assert "E5M2" not in {row.format for row, _, _, best in pareto(rows) if best}


def test_a_collapse_step_of_a_group_is_the_median_everywhere(sweep: Folder) -> None:
    for seed, step in enumerate((10, 20, 90), start=1):
        verdict = Verdict(step, "stalled", "loss", 1.0, 2.0)
        write_run(sweep, f"r{seed}", {5: 3.0}, config={"seed": seed, "format": "E7M0"}, status="collapsed",
                  verdict=verdict)  # fmt: skip
    rows = comparison(list_runs(sweep)[0])
    assert collapse_step(rows) == 20.0 == rescue_matrix(rows)["E7M0", "", "none"].median_collapse_step
    assert group_frame(rows)["collapse_step"].tolist() == [20.0]


def test_other_ends_than_collapse_are_named_in_the_matrix(sweep: Folder) -> None:
    for seed, status in enumerate(("failed", "stopped", "stopped", None, "completed"), start=1):
        write_run(sweep, f"r{seed}", {5: 3.0}, config={"seed": seed, "format": "E7M0"}, status=status)
    (line, *_) = rescue_matrix(comparison(list_runs(sweep)[0]))["E7M0", "", "none"].lines
    assert line == "1 of 1 (+1 failed, 1 running, 2 stopped)"


# --- groups


VALUES: dict[str, list[Any]] = {
    "format": ["E4M3", "E5M2"], "seed": [1, 2, 3], "learning_rate": [3e-4, 1e-2, 0.30000000000000004, 0.3],
    "weight_decay": [0.1, 0.0], "master_weights": [True, False], "rounding": ["nearest", "stochastic"],
    "gradient_format": [None, "E5M2"], "scaling": ["dynamic", "none"], "n_embd": [None, 32], "max_steps": [100, 200],
    "partition_clip_base": [1.0, 2.0], "enable_partition_clipping": [True, False], "beta2": [0.95, 0.99],
    "layer_formats": [{}, {"lm_head": "BF16"}], "stop_on_collapse": [True, False], "eval_interval": [50, 100],
}  # fmt: skip


@pytest.mark.parametrize("draw", range(8))
def test_two_runs_are_one_group_exactly_where_they_differ_in_the_seed_only(tmp_path: Path, draw: int) -> None:
    rng = random.Random(draw)
    sweep = Folder.at(tmp_path)
    varied = ["seed", *rng.sample(sorted(VALUES.keys() - {"seed"}), 4)]
    configs = {}
    for number in range(30):
        config = {name: rng.choice(VALUES[name]) for name in varied}
        intervention = rng.choice(["none", "clip"]) if config.get("enable_partition_clipping") else "none"
        write_run(sweep, f"r{number}", {1: 2.0}, config=config, intervention=intervention)
        configs[f"r{number}"] = repr(
            (intervention, sorted((name, value) for name, value in config.items() if name != "seed"))
        )
    rows = comparison(list_runs(sweep)[0])
    for one, other in itertools.combinations(rows, 2):
        same = configs[one.run] == configs[other.run]
        assert (one.group == other.group) == same, (configs[one.run], configs[other.run])
        assert (one.group_label == other.group_label) == same, "a label that two groups share joins them in a legend"
    assert len(rescue_matrix(rows)) == len(by_group(rows)) == len(set(configs.values()))


def test_a_field_that_differs_nowhere_is_in_no_label(sweep: Folder) -> None:
    write_run(sweep, "a", {}, config={"format": "E4M3", "learning_rate": 0.01})
    write_run(sweep, "b", {}, config={"format": "E5M2", "learning_rate": 0.01})
    assert {row.group_label for row in comparison(list_runs(sweep)[0])} == {"E4M3", "E5M2"}


def test_models_given_to_the_runner_under_one_config_are_groups_of_their_own(sweep: Folder) -> None:
    for seed, parameters in ((1, 1000), (2, 1000), (1, 2000)):
        write_run(sweep, f"r{seed}-{parameters}", {}, config={"seed": seed}, info=HASHES | {"parameters": parameters})
    write_run(sweep, "died-before-it-said", {}, config={"seed": 3}, status="failed")
    groups = [sorted(row.run for row in members) for members in by_group(comparison(list_runs(sweep)[0])).values()]
    assert sorted(groups) == [["died-before-it-said", "r1-1000", "r2-1000"], ["r1-2000"]]


# --- baselines


WITHOUT_EFFECT = [
    {}, {"scaling": "none"}, {"scaling": "delayed"}, {"scale_granularity": "row"}, {"update_rounding": "stochastic"},
    {"weight_format": "BF16"}, {"amax_history": 4}, {"block_axis": "last"}, {"high_first_blocks": 1.0},
    {"high_last_blocks": 0.5},
]  # fmt: skip
NOT_THE_REFERENCE = [
    {"master_weights": False}, {"rounding": "stochastic"}, {"rounding": "toward_zero"}, {"gradient_format": "E5M2"},
    {"weight_format": "E4M3"}, {"activation_format": "FP32"}, {"layer_formats": {"lm_head": "E4M3"}},
    {"format": "FP32"}, {"format": "FP16"}, {"enable_emergency_shift": True}, {"enable_partition_clipping": True},
    {"overflow": "saturate"}, {"scale_power_of_two": False}, {"amax_factor": 0.5},
    {"master_weights": False, "update_rounding": "stochastic"}, {"recipe": "mxfp8"}, {"recipe": "bf16_sr"},
    {"gemms": {"wgrad": {"format": "E4M3"}}},
    {"first_moment": {"format": "E4M3"}}, {"second_moment": {"format": "E4M3"}},
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


# --- unlike runs


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
