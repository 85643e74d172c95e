"""Curves ready to be drawn: spikes, NaN spans, smoothing and differences, by hand and against slow versions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from altgrad.results.reading.curves import Curve, Span, buckets, difference, measured, non_finite_spans, smooth

NAN = math.nan


def random_curve(seed: int, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n)
    values[rng.random(n) < 0.1] = NAN
    values[rng.random(n) < 0.02] = math.inf
    return np.cumsum(rng.integers(1, 9, n)), values


def test_a_null_is_no_point_and_a_nan_is_one() -> None:
    table = pa.table({"step": [1, 2, 3, 4], "loss": pa.array([1.0, None, NAN, 4.0], pa.float64())})
    curve = measured(table, "loss")
    assert curve.steps.tolist() == [1, 3, 4]
    assert np.array_equal(curve.values, [1.0, NAN, 4.0], equal_nan=True)
    assert curve.finite().steps.tolist() == [1, 4]


@pytest.mark.parametrize("at", [0, 1, 4999, 7777, 9999])
@pytest.mark.parametrize("n", [1, 7, 200])
def test_a_spike_of_one_step_survives_any_thinning(at: int, n: int) -> None:
    values = np.ones(10_000)
    values[at] = 50.0
    thin = buckets(np.arange(10_000), values, n)
    assert len(thin.steps) <= 3 * n + 2
    assert thin.steps[thin.values == 50.0].tolist() == [at]


@pytest.mark.parametrize("seed", range(5))
def test_each_bucket_keeps_its_extremes_and_shows_that_it_was_broken(seed: int) -> None:
    steps, values = random_curve(seed)
    n = 40
    thin = buckets(steps, values, n)
    edges = np.linspace(steps[0], steps[-1] + 1, n + 1)
    for low, high in itertools.pairwise(edges):
        inside = values[(steps >= low) & (steps < high)]
        kept = thin.values[(thin.steps >= low) & (thin.steps < high)]
        finite = inside[np.isfinite(inside)]
        assert kept[np.isfinite(kept)].min() == finite.min()
        assert kept[np.isfinite(kept)].max() == finite.max()
        assert np.isfinite(inside).all() == np.isfinite(kept).all()
    assert thin.steps[0] == steps[0] and thin.steps[-1] == steps[-1]
    assert np.all(np.diff(thin.steps) > 0)
    original = dict(zip(steps.tolist(), values.tolist(), strict=True))
    assert np.array_equal(thin.values, [original[step] for step in thin.steps.tolist()], equal_nan=True)


def test_a_short_curve_stays_as_it_is_and_no_bucket_is_refused() -> None:
    thin = buckets([3, 5, 9], [1.0, NAN, 2.0], 2)
    assert thin.steps.tolist() == [3, 5, 9]
    assert buckets([], [], 5).steps.size == 0
    with pytest.raises(ValueError, match="at least one bucket"):
        buckets([1], [1.0], 0)


def test_a_curve_that_is_nan_throughout_keeps_one_mark_per_bucket() -> None:
    thin = buckets(np.arange(100), np.full(100, NAN), 10)
    assert thin.steps.tolist() == [*range(0, 100, 10), 99]


def test_non_finite_spans_name_their_steps_and_the_last_finite_value_before() -> None:
    spans = non_finite_spans([1, 2, 5, 6, 9, 10], [NAN, 2.0, 3.0, math.inf, NAN, 4.0])
    assert spans == [Span(1, 1, 1, None, None), Span(6, 9, 2, 5, 3.0)]
    assert non_finite_spans([], []) == []
    assert non_finite_spans([1, 2], [1.0, 2.0]) == []
    assert non_finite_spans([4], [-math.inf]) == [Span(4, 4, 1, None, None)]


@pytest.mark.parametrize("seed", range(5))
def test_spans_count_every_non_finite_row_once(seed: int) -> None:
    steps, values = random_curve(seed)
    spans = non_finite_spans(steps, values)
    assert sum(span.count for span in spans) == np.count_nonzero(~np.isfinite(values))
    for span in spans:
        assert not np.isfinite(values[(steps >= span.first) & (steps <= span.last)]).any()


def test_smoothing_halves_a_weight_per_half_life() -> None:
    # weights 1/4, 1/2, 1 of the values 0, 0, 7
    assert smooth([0.0, 0.0, 7.0], 1.0).tolist() == pytest.approx([0.0, 0.0, 4.0])


@pytest.mark.parametrize("half_life", [0.5, 3.0, 50.0])
def test_smoothing_agrees_with_pandas_and_leaves_non_finite_values_in_place(half_life: float) -> None:
    _, values = random_curve(1)
    finite = np.isfinite(values)
    result = smooth(values, half_life)
    expected = pd.Series(values[finite]).ewm(halflife=half_life, adjust=True).mean()
    assert result[finite] == pytest.approx(expected.to_numpy(), rel=1e-9, abs=1e-12)
    assert np.array_equal(result[~finite], values[~finite], equal_nan=True)


def test_no_smoothing_changes_nothing_and_a_negative_half_life_is_refused() -> None:
    assert smooth([1.0, 5.0], 0).tolist() == [1.0, 5.0]
    assert np.isnan(smooth([NAN], 2)).all()
    with pytest.raises(ValueError, match="half_life=-1"):
        smooth([1.0], -1)


def curve(points: dict[int, float]) -> Curve:
    return Curve(np.array(list(points), np.int64), np.array(list(points.values()), np.float64))


def test_a_difference_is_taken_where_the_baseline_reaches_and_linear_in_between() -> None:
    gap = difference(curve({0: 9.0, 10: 3.0, 15: 3.0, 20: NAN, 30: 1.0}), curve({10: 2.0, 20: 4.0}))
    assert gap.steps.tolist() == [10, 15, 20]
    assert gap.values[:2].tolist() == [1.0, 0.0] and math.isnan(gap.values[2])
    assert difference(curve({1: 1.0}), curve({})).steps.size == 0


def test_a_baselines_nan_reaches_its_own_neighbourhood_only() -> None:
    gap = difference(curve(dict.fromkeys(range(0, 50, 5), 1.0)), curve({0: 1.0, 10: 1.0, 20: NAN, 30: 1.0, 40: 1.0}))
    broken = gap.steps[np.isnan(gap.values)]
    assert broken.tolist() == [15, 20, 25]
