"""What non_finite, diverged, never_learned and gap_to_baseline must find, at which step, and what not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from altgrad.collapse.smoothing import Smoothed
from tests.support.results.collapse_curves import (
    CAP,
    CONFIG,
    STEPS,
    VOCABULARY,
    diverging,
    healthy,
    judge,
    noisy,
    records,
    spiked,
)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("start", [1, 2, 137, 500 - 4])
def test_a_loss_that_stays_non_finite_fires_when_the_patience_ends(bad: float, start: int) -> None:
    verdict = judge(records(lambda step: bad if step >= start else healthy(step)))
    assert verdict is not None
    assert (verdict.step, verdict.rule, verdict.metric) == (
        start + CONFIG.non_finite_patience - 1,
        "non_finite",
        "loss",
    )
    assert math.isnan(verdict.value) if math.isnan(bad) else verdict.value == bad
    assert f"since step {start}" in verdict.detail


def test_nan_bursts_shorter_than_the_patience_do_not_fire_and_leave_no_trace() -> None:
    length = CONFIG.non_finite_patience - 1

    def burst(step: int) -> float:
        return math.nan if step % 20 < length else healthy(step)

    assert judge(records(burst)) is None
    smoothed = Smoothed()
    for row in records(burst):
        smoothed.update(row["loss"])
    assert smoothed.value == pytest.approx(healthy(STEPS), abs=0.05)


def test_non_finite_gradients_count_like_a_non_finite_loss() -> None:
    verdict = judge(records(healthy, non_finite_gradients=lambda step: 0.25 if step >= 90 else 0.0))
    assert verdict is not None
    assert (verdict.step, verdict.metric, verdict.value, verdict.limit) == (94, "non_finite_gradients", 0.25, 0.0)
    assert judge(records(healthy, non_finite_gradients=lambda step: 0.0 if step % 5 else 0.25)) is None


def test_nan_and_non_finite_gradients_in_turn_are_one_series() -> None:
    rows = records(healthy)
    for row in rows[100:]:
        row.update({"loss": math.nan} if row["step"] % 2 else {"non_finite_gradients": 1.0})
    verdict = judge(rows)
    assert verdict is not None and (verdict.rule, verdict.step) == ("non_finite", 105)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, None])
def test_a_fall_to_uniform_is_found_within_the_patience_and_a_few_steps(vocabulary: int | None) -> None:
    verdict = judge(records(diverging), vocabulary=vocabulary)
    assert verdict is not None and (verdict.rule, verdict.metric) == ("diverged", "loss")
    # crosses the margin some steps after 205, then waits
    assert 205 + CONFIG.diverged_patience <= verdict.step <= 225 + CONFIG.diverged_patience
    assert verdict.value > verdict.limit == pytest.approx(healthy(200) + CONFIG.diverged_margin, abs=0.1)


@pytest.mark.parametrize("scale", [0.05, 0.12, 0.3])
def test_divergence_is_found_through_noise(scale: float) -> None:
    for seed in range(20):
        verdict = judge(records(noisy(diverging, seed, scale)))
        assert verdict is not None and verdict.rule == "diverged", seed
        assert verdict.step < 450, (seed, verdict)


def test_a_run_that_learned_less_than_the_margin_and_fell_to_uniform_is_found() -> None:
    best = CAP - 0.6 * CONFIG.diverged_margin
    curve = lambda step: CAP - (CAP - best) * min(1, step / 100) if step < 200 else CAP  # noqa: E731
    verdict = judge(records(curve))
    assert verdict is not None and verdict.rule == "diverged"
    assert verdict.limit < CAP < best + CONFIG.diverged_margin
    assert judge(records(curve), vocabulary=None) is None  # without a ceiling nothing tells it from a bump


def test_an_explosion_beyond_uniform_is_found_also_when_nothing_had_been_learned() -> None:
    verdict = judge(records(lambda step: CAP if step < 60 else 1e4))
    assert verdict is not None and verdict.rule == "diverged"
    assert verdict.step <= 60 + CONFIG.diverged_patience + 5


def test_a_recovery_that_stops_half_way_is_found() -> None:
    half_way = lambda step: max(spiked(150, 20, CAP, heal=10.0)(step), 4.0 if step >= 150 else 0.0)  # noqa: E731
    verdict = judge(records(half_way))
    assert verdict is not None and verdict.rule == "diverged"
    assert verdict.step > 150 + 20 + CONFIG.diverged_patience


def test_a_slow_rise_is_found() -> None:
    verdict = judge(records(lambda step: healthy(step) if step < 150 else healthy(150) + 0.008 * (step - 150)))
    assert verdict is not None and verdict.rule == "diverged"


@pytest.mark.parametrize("start", [CAP, CAP + 0.3, 4.5])
def test_a_run_that_never_leaves_its_start_fires_at_the_fraction(start: float) -> None:
    verdict = judge(records(lambda step: max(start - 0.01 * step, min(start, CAP) - 0.1)))
    assert verdict is not None
    assert (verdict.rule, verdict.step) == ("never_learned", 200)
    assert verdict.value > verdict.limit == pytest.approx(min(start, CAP) - CONFIG.never_learned_margin, abs=0.05)


def test_never_learned_is_found_through_noise() -> None:
    for seed in range(20):
        verdict = judge(records(noisy(lambda step: CAP, seed, 0.03)))
        assert verdict is not None and verdict.rule == "never_learned", seed


def test_a_trained_model_with_little_left_to_learn_is_not_called_a_run_that_never_learned() -> None:
    assert judge(records(lambda step: 2.1 - 0.0001 * step)) is None


def test_the_deadline_is_never_inside_the_warm_up() -> None:
    config = CONFIG.altered(max_steps=100_000, warmup_steps=60_000)
    rows = ({"step": step, "loss": CAP} for step in range(1, 100_000, 10))
    verdict = judge(rows, config)
    assert verdict is not None and verdict.step >= 60_050


def test_a_constant_gap_fires_when_the_patience_after_warm_up_ends() -> None:
    verdict = judge(records(healthy, gap_to_baseline=lambda step: 1.3))
    assert verdict is not None
    assert (verdict.step, verdict.rule) == (CONFIG.warmup_steps + CONFIG.gap_patience, "gap_to_baseline")
    assert (verdict.metric, verdict.value, verdict.limit) == ("gap_to_baseline", 1.3, CONFIG.gap_limit)


@pytest.mark.parametrize(
    "gap",
    [
        lambda step: 0.28,
        lambda step: 3.0 if step % 50 else 0.2,
        lambda step: 3.0 if step <= 100 else 0.2,
        lambda step: 3.0 * math.exp(-step / 250),
        lambda step: math.nan,
    ],
    ids=["below", "interrupted", "early", "catching_up", "nan"],
)
def test_a_gap_that_is_small_or_closes_does_not_fire(gap: Callable[[int], float]) -> None:
    assert judge(records(healthy, gap_to_baseline=gap)) is None
