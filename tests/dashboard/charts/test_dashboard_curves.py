"""What the curves page draws: every spike and every non-finite value, means that depend on their own group alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad.compare import Row, comparison
from altgrad.events import Event
from altgrad.results import Run, RunWriter, read_events, read_run
from altgrad.show.drawn_curves import View, death, describe, line, non_finite_count, not_on_log, off_scale, scale
from altgrad.show.seed_bands import seed_bands
from altgrad.storage.folder import Folder
from dashboard.data.drawn_tables import drawn_values
from dashboard.figures.curve_figures import curves_figure
from dashboard.figures.curve_marks import add_moments
from tests.support.results import generated_results as generated

LOSS = View("loss")


def write(
    sweep: Folder,
    losses: list[float],
    format: str = "E4M3",
    seed: int = 1,
    status: str = "completed",
    intervention: str = "none",
) -> Run:
    """A run with these losses at steps 1, 2, ..., 100 tokens and 0.5 s each."""
    run = generated.InventedRun(format, intervention, seed, steps=len(losses))
    writer = RunWriter(sweep / run.name, flush_seconds=1e9)
    writer.start(run.info(sweep.name))
    for index, loss in enumerate(losses):
        step = index + 1
        writer.step({"step": step, "loss": loss, "tokens": 100.0 * step, "elapsed_seconds": 0.5 * step})
    writer.end(status, None, {})  # type: ignore[arg-type]
    return read_run(sweep / run.name)


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return generated.new_sweep(tmp_path, "s")


def row_of(run: Run, runs: list[Run] | None = None) -> Row:
    return next(row for row in comparison(runs or [run]) if row.run == run.name)


def drawn(run: Run, view: View = LOSS) -> Any:
    one = line(row_of(run), run, view)
    assert one is not None
    return one


def test_spike_of_one_step_is_drawn_in_a_long_curve(sweep: Folder) -> None:
    losses = [2.0] * 20_000
    losses[12_345] = 9.0
    one = drawn(write(sweep, losses))
    assert len(one.raw.steps) < 2_000
    assert 12_346 in one.raw.steps and one.raw.values.max() == 9.0


def test_window_shows_the_spike_too(sweep: Folder) -> None:
    losses = [2.0] * 5_000
    losses[1_000] = 9.0
    one = drawn(write(sweep, losses), View("loss", first=900, last=1_100))
    assert one.raw.steps[0] == 900 and one.raw.steps[-1] == 1_100
    assert one.raw.values.max() == 9.0


def test_every_non_finite_value_is_marked(sweep: Folder) -> None:
    rng = np.random.default_rng(0)
    losses = np.where(rng.random(3_000) < 0.05, np.nan, 2.0)
    losses[77] = np.inf
    one = drawn(write(sweep, losses.tolist()), View("loss", buckets=10))
    assert non_finite_count([one]) == np.count_nonzero(~np.isfinite(losses))
    shaded = [shape for shape in curves_figure([one], LOSS).layout.shapes if shape.type == "rect"]
    assert len(shaded) == len(one.spans)


def test_nan_span_is_shaded_where_it_is_with_the_last_finite_value(sweep: Folder) -> None:
    losses = [3.0, 2.5, 2.0, float("nan"), float("nan"), 1.5]
    one = drawn(write(sweep, losses))
    figure = curves_figure([one], LOSS)
    (shape,) = figure.layout.shapes
    assert (shape.x0, shape.x1) == (3.5, 5.5)
    (mark,) = [trace for trace in figure.data if "last finite" in (trace.name or "")]
    assert (list(mark.x), list(mark.y)) == ([3], [2.0])


def test_span_is_placed_in_tokens_where_the_axis_is_tokens(sweep: Folder) -> None:
    one = drawn(write(sweep, [3.0, float("nan"), 2.0]), View("loss", axis="tokens"))
    (shape,) = curves_figure([one], View("loss", axis="tokens")).layout.shapes
    assert (shape.x0, shape.x1) == (150.0, 250.0)
    assert list(one.x_raw) == [100.0, 200.0, 300.0]


def test_metric_that_was_not_measured_has_no_line(sweep: Folder) -> None:
    run = write(sweep, [1.0, 2.0])
    assert line(row_of(run), run, View("stall_rate")) is None


def test_smoothing_keeps_the_raw_line_faint(sweep: Folder) -> None:
    run = write(sweep, [1.0, 3.0] * 20)
    view = View("loss", half_life=5)
    one = drawn(run, view)
    faint, strong = curves_figure([one], view).data[:2]
    assert faint.opacity < 0.5 and list(faint.y) == [1.0, 3.0] * 20
    assert np.ptp(np.array(strong.y)[20:]) < 1.0


def test_difference_is_to_the_baseline_of_the_same_seed(sweep: Folder) -> None:
    baseline, run = write(sweep, [1.0, 2.0, 3.0], "BF16"), write(sweep, [1.5, 3.0, 5.0])
    one = line(row_of(run), run, View("loss", difference=True), baseline)
    assert one is not None
    assert one.raw.values.tolist() == [0.5, 1.0, 2.0]
    assert line(row_of(run), run, View("loss", difference=True), None) is None


def test_diverged_run_does_not_flatten_the_others(sweep: Folder) -> None:
    healthy = [drawn(write(sweep, [3.0, 2.0, 1.0], seed=seed)) for seed in (1, 2)]
    diverged = drawn(write(sweep, [3.0, 500.0, 1e6], "E7M0", status="collapsed"))
    limits = scale([*healthy, diverged])
    assert limits is not None and limits[0] < 1.0 and 3.0 < limits[1] < 4.0
    above, below = off_scale(diverged, limits)
    assert (above, below) == ([2], [])
    figure = curves_figure([*healthy, diverged], LOSS)
    (marks,) = [trace for trace in figure.data if trace.name == "off the scale"]
    assert list(marks.x) == [2] and list(marks.text) == [diverged.row.run]


def test_infinite_values_are_marked_as_non_finite_only(sweep: Folder) -> None:
    one = drawn(write(sweep, [3.0, 2.0, np.inf, np.inf, 2.0, -np.inf]))
    assert off_scale(one, (1.0, 4.0)) == ([], [])
    assert non_finite_count([one]) == 3


def test_scale_of_collapsed_runs_alone_is_their_own(sweep: Folder) -> None:
    only = drawn(write(sweep, [3.0, 4.0, 5.0], status="collapsed"))
    limits = scale([only])
    assert limits is not None and limits[0] < 3.0 and limits[1] > 5.0


def test_curve_without_finite_values_has_no_scale(sweep: Folder) -> None:
    one = drawn(write(sweep, [float("nan")] * 3))
    assert scale([one]) is None
    curves_figure([one], LOSS)


def test_band_is_the_mean_and_the_extremes_of_the_seeds(sweep: Folder) -> None:
    losses = ([3.0, 2.0, 1.0], [5.0, 4.0, 3.0], [4.0, 3.0])
    runs = [write(sweep, values, seed=seed) for seed, values in enumerate(losses)]
    by_name = {run.name: run for run in runs}
    rows = [row for row in comparison(runs) if row.max_steps == 3]
    (band,) = seed_bands(rows, by_name, LOSS, "range")
    assert band.n == 2
    assert band.mean.tolist() == [4.0, 3.0, 2.0]
    assert band.low.tolist() == [3.0, 2.0, 1.0] and band.high.tolist() == [5.0, 4.0, 3.0]


def test_band_ends_where_its_first_seed_ends(sweep: Folder) -> None:
    short = generated.InventedRun("E4M3", seed=1, steps=50)
    generated.write_run(sweep, short, "collapsed", until=20, verdict=generated.STALLED)
    generated.write_run(sweep, generated.InventedRun("E4M3", seed=2, steps=50))
    runs = [read_run(sweep / info.base_name) for info in sweep.list() if info.base_name.startswith("e4m3")]
    (band,) = seed_bands(comparison(runs), {run.name: run for run in runs}, LOSS)
    assert band.n == 2 and band.steps[-1] == 20


def test_hiding_a_run_changes_no_other_group(sweep: Folder) -> None:
    for format in ("BF16", "E4M3", "E5M2"):
        for seed in (1, 2, 3):
            generated.write_run(sweep, generated.InventedRun(format, seed=seed, steps=30))
    runs = [read_run(sweep / info.base_name) for info in sweep.list() if info.type.name == "Directory"]
    by_name, rows = {run.name: run for run in runs}, comparison(runs)
    whole = {band.row.format: band.mean.tolist() for band in seed_bands(rows, by_name, LOSS)}
    hidden = [row for row in rows if not (row.format == "E4M3" and row.seed == 2)]
    fewer = {band.row.format: band.mean.tolist() for band in seed_bands(hidden, by_name, LOSS)}
    assert fewer["BF16"] == whole["BF16"] and fewer["E5M2"] == whole["E5M2"]
    assert fewer["E4M3"] != whole["E4M3"]


def test_export_is_what_is_drawn(sweep: Folder) -> None:
    lines = [drawn(write(sweep, [3.0, 2.0, float("nan"), 1.0], seed=seed)) for seed in (1, 2)]
    frame = drawn_values(lines, LOSS)
    traces = [trace for trace in curves_figure(lines, LOSS).data if trace.mode == "lines"]
    for one, trace in zip(lines, traces, strict=True):
        own = frame[frame["run"] == one.row.run]
        assert own["step"].tolist() == list(trace.x)
        assert np.array_equal(own["loss"], trace.y, equal_nan=True)


def test_events_and_verdict_are_drawn_on_the_curve(sweep: Folder) -> None:
    run = generated.InventedRun("E7M0", "clip", steps=100)
    folder = generated.write_run(sweep, run, "collapsed", until=85, verdict=generated.STALLED)
    read = read_run(folder)
    one = drawn(read)
    figure = curves_figure([one], LOSS)
    add_moments(figure, one, read_events(read), one.row.collapse_step)
    (clips,) = [trace for trace in figure.data if trace.name == "clip"]
    assert list(clips.x) == [10, 20, 30, 40, 50, 60, 70, 80]
    verdict = figure.layout.shapes[-1]
    assert verdict.x0 == verdict.x1 == 80
    assert figure.layout.annotations[0].text == "stalled"


def test_bands_of_the_difference_are_those_of_each_seeds_own_difference(sweep: Folder) -> None:
    rng = np.random.default_rng(1)
    losses = {(fmt, seed): rng.normal(3, 1, 30) for fmt in ("BF16", "E4M3") for seed in (1, 2, 3)}
    runs = {}
    for (fmt, seed), values in losses.items():
        run = write(sweep, values.tolist(), fmt, seed)
        runs[run.name] = run
    rows = comparison(runs.values())
    (band,) = seed_bands([row for row in rows if row.format == "E4M3"], runs, View("loss", difference=True), "range")
    own = np.stack([losses["E4M3", seed] - losses["BF16", seed] for seed in (1, 2, 3)])
    np.testing.assert_allclose(band.mean, own.mean(axis=0))
    np.testing.assert_allclose((band.low, band.high), (own.min(axis=0), own.max(axis=0)))


def test_a_logarithmic_axis_has_the_healthy_runs_scale_and_says_what_it_cannot_draw(sweep: Folder) -> None:
    losses = [4.0, 3.0, 0.0, -1.0, 2.0, 1.0]
    healthy = drawn(write(sweep, losses))
    wild = drawn(write(sweep, [3.0, 5.0, 1e12], "E7M0", status="collapsed"))
    figure = curves_figure([healthy, wild], LOSS, log_y=True)
    low, high = figure.layout.yaxis.range
    assert figure.layout.yaxis.type == "log"
    assert 0 < 10**low <= 1.0 and 4.0 <= 10**high < 10
    assert next(list(trace.x) for trace in figure.data if trace.name == "off the scale") == [2], "1e12 is marked"
    assert not_on_log([healthy, wild]) == sum(value <= 0 for value in losses) == 2


def test_a_mark_beyond_the_last_measurement_floats_on_no_line(sweep: Folder) -> None:
    run = write(sweep, [3.0, 2.0, 1.5, float("nan"), float("nan")])
    one = drawn(run)
    assert [one.height(step) for step in (1, 1.5, 3)] == [3.0, 2.5, 1.5]
    assert [one.height(step) for step in (0, 4, 5, 9)] == [None] * 4
    figure = curves_figure([one], LOSS)
    add_moments(figure, one, [Event(step, "skip", {}) for step in (2, 4, 9)], None)
    (skips,) = [trace for trace in figure.data if trace.name == "skip"]
    assert list(skips.y) == [2.0, figure.layout.yaxis.range[0], figure.layout.yaxis.range[0]]
    assert [bool(text) for text in skips.text] == [False, True, True]


def test_a_collapsed_run_is_not_said_to_have_the_lowest_loss(sweep: Folder) -> None:
    alive, dead = write(sweep, [3.0, 2.0]), write(sweep, [3.0, 1.0], "E7M0", status="collapsed")
    assert "Lowest last finite value: 2 (e4m3" in describe([drawn(alive), drawn(dead)])


def test_marks_outside_the_window_are_not_drawn_and_do_not_stretch_the_axis(sweep: Folder) -> None:
    run = write(sweep, [3.0, 2.5, 2.0, 1.5, 1.0], status="failed")
    one = drawn(run, View("loss", first=2, last=3))
    figure = curves_figure([one], LOSS)
    add_moments(figure, one, [Event(step, "skip", {}) for step in (1, 3, 5)], 5)
    (skips,) = [trace for trace in figure.data if trace.name == "skip"]
    assert list(skips.x) == [3]
    assert max(max(trace.x) for trace in figure.data) == 3 and not figure.layout.shapes and death(one) is None


def test_a_death_is_marked_at_the_last_measurement_before_it(sweep: Folder) -> None:
    run = write(sweep, [3.0, 2.0, 1.0, float("nan"), float("nan")], status="failed")
    one = drawn(run)
    assert str(death(one)) == "failed at step 5; last measured at step 3"
    (cross,) = [trace for trace in curves_figure([one], LOSS).data if trace.marker.symbol == "x"]
    assert (list(cross.x), list(cross.y), cross.legendgroup) == ([3], [1.0], run.name)
    measured = death(drawn(write(sweep, [3.0, 2.0], "E7M0", status="failed")))
    assert measured is not None and (measured.step, measured.value, measured.died) == (2, 2.0, 2)
    assert death(drawn(write(sweep, [3.0, 2.0], seed=2))) is None


def test_a_branch_is_drawn_from_its_own_first_step_with_a_dot_that_names_its_parent(sweep: Folder) -> None:
    parent = write(sweep, [3.0, 2.0, 1.0], "BF16")
    run = generated.InventedRun("E4M3", steps=5)
    writer = RunWriter(sweep / run.name, flush_seconds=1e9)
    origin = {"parent": str(parent.folder), "run": parent.name, "step": 3, "changes": {"format": "E4M3"}}
    writer.start(run.info(sweep.name) | {"branch": origin})
    for step, loss in ((4, 0.9), (5, 0.8)):
        writer.step({"step": step, "loss": loss})
    writer.end("completed", None, {})
    branch = read_run(sweep / run.name)
    one = line(row_of(branch, [parent, branch]), branch, View("loss", half_life=2))
    assert one is not None and one.x_smoothed.tolist() == [4, 5]
    (dot,) = [trace for trace in curves_figure([drawn(parent), one], LOSS).data if "branched" in str(trace.text)]
    assert (list(dot.x), dot.text[0]) == ([4], f"{run.name} branched from {parent.name} at step 3")


def test_a_spike_is_marked_off_the_scale_although_the_smoothed_line_stays_on_it(sweep: Folder) -> None:
    losses = [3.0, 2.0] * 200
    losses[100] = 20.0
    one = drawn(write(sweep, losses), View("loss", half_life=40))
    limits = scale([one])
    assert limits is not None and one.smoothed.values.max() < limits[1] < 20
    assert off_scale(one, limits)[0] == [101]
