"""What stalled and rank_collapse must find, at which step, and what not."""

from __future__ import annotations

import math

import pytest

from tests.support.results.collapse_curves import CAP, CONFIG, INTERVAL, cosine_tail, healthy, judge, noisy, records


def test_frozen_weights_with_a_flat_loss_are_found_at_the_last_of_the_windows() -> None:
    verdict = judge(records(cosine_tail, realised_displacement=lambda step: 0.02 if step > 250 else 0.9))
    assert verdict is not None
    assert (verdict.rule, verdict.step, verdict.metric, verdict.value) == (
        "stalled",
        400,
        "realised_displacement",
        0.02,
    )
    assert "since step 250" in verdict.detail


def test_weights_frozen_from_the_start_are_found_before_the_never_learned_deadline() -> None:
    verdict = judge(records(lambda step: CAP, realised_displacement=lambda step: 0.0))
    assert verdict is not None and (verdict.rule, verdict.step) == ("stalled", 150)


def test_frozen_weights_are_found_through_noise() -> None:
    for seed in range(20):
        rows = records(noisy(cosine_tail, seed), realised_displacement=lambda step: 0.02 if step > 250 else 0.9)
        verdict = judge(rows)
        assert verdict is not None and verdict.rule == "stalled", seed


def test_little_displacement_with_a_falling_loss_is_no_stall() -> None:
    assert judge(records(lambda step: 5.5 - 0.002 * step, realised_displacement=lambda step: 0.05)) is None


def test_a_stall_is_found_although_the_parameters_without_a_format_still_learn_a_little() -> None:
    """E7M0 without master weights, nearest rounding, as measured on a tiny GPT: (loss, realised displacement)."""
    measured = [(4.98, 0.012), (4.85, 0.008), (4.81, 0.003), (4.77, 2e-5), (4.78, 4e-6), (4.76, 4e-6)]

    def loss(step: int) -> float:
        before, after = [(5.56, 0.0), *measured][(step - 1) // INTERVAL], measured[(step - 1) // INTERVAL]
        return before[0] + (after[0] - before[0]) * ((step - 1) % INTERVAL + 1) / INTERVAL

    verdict = judge(records(loss, 300, realised_displacement=lambda step: measured[step // INTERVAL - 1][1]))
    assert verdict is not None and verdict.rule == "stalled" and verdict.step <= 300


def test_a_flat_loss_alone_is_no_stall() -> None:
    assert judge(records(cosine_tail)) is None
    assert judge(records(cosine_tail, realised_displacement=lambda step: 0.9)) is None
    assert judge(records(cosine_tail, realised_displacement=lambda step: math.nan)) is None


@pytest.mark.parametrize(("gap", "is_judged"), [(0.14, False), (0.16, True), (-0.1, False), (math.nan, True)])
def test_weights_frozen_next_to_the_baseline_have_lost_nothing(gap: float, is_judged: bool) -> None:
    """Half of `gap_limit`, 0.15 nats, must be missing."""
    rows = records(
        cosine_tail, gap_to_baseline=lambda step: gap, realised_displacement=lambda step: 0.02 if step > 250 else 0.9
    )
    verdict = judge(rows)
    assert (verdict and (verdict.rule, verdict.step)) == (("stalled", 400) if is_judged else None)


def test_one_window_that_moves_starts_the_count_again() -> None:
    moves = lambda step: 0.9 if step <= 200 or step in (300, 400, 500) else 0.0  # noqa: E731
    assert judge(records(cosine_tail, realised_displacement=moves)) is None


def test_stalling_during_a_long_warm_up_is_not_judged() -> None:
    config = CONFIG.altered(max_steps=5000, warmup_steps=1000)
    curve = lambda step: CAP if step < 900 else healthy(step - 899)  # noqa: E731
    rows = records(curve, 2000, realised_displacement=lambda step: 0.0 if step <= 900 else 0.9)
    assert judge(rows, config) is None


def test_a_sudden_fall_of_the_rank_is_found_although_the_loss_still_falls_slowly() -> None:
    verdict = judge(records(healthy, stable_rank=lambda step: 12.0 if step <= 250 else 1.2))
    assert verdict is not None
    assert (verdict.rule, verdict.step, verdict.metric, verdict.value) == ("rank_collapse", 350, "stable_rank", 1.2)


def test_a_slow_fall_of_the_rank_that_learning_does_not_explain_is_found() -> None:
    verdict = judge(
        records(lambda step: CAP - 2.2 * min(step, 40) / 40, stable_rank=lambda step: 1 + 29 * 0.6 ** (step / INTERVAL))
    )
    assert verdict is not None and verdict.rule == "rank_collapse"


def test_a_layer_that_starts_near_rank_one_can_collapse() -> None:
    """10 % of 6 is below 1, which no matrix reaches."""
    verdict = judge(records(healthy, stable_rank=lambda step: 6.0 if step <= 250 else 1.1))
    assert verdict is not None and verdict.rule == "rank_collapse"


@pytest.mark.parametrize("factor", [0.9, 0.6, 0.4])
def test_the_early_decline_of_the_rank_is_healthy(factor: float) -> None:
    rank = lambda step: 2.5 + 190 * factor ** min(step / INTERVAL, 6)  # noqa: E731
    assert judge(records(healthy, stable_rank=rank)) is None


def test_an_output_head_that_tends_to_rank_one_is_healthy() -> None:
    """The smallest stable rank of a tiny GPT as measured in FP32, and where it tends."""
    measured = [2.96, 1.41, 1.27, 1.21, 1.18, 1.16, 1.15, 1.06, 1.01, 1.001]
    assert judge(records(cosine_tail, stable_rank=lambda step: measured[step // INTERVAL - 1])) is None


def test_a_rank_that_rose_and_then_fell_is_judged_from_its_height() -> None:
    curve = lambda step: 1.5 if step <= 100 else 9.0 if step <= 300 else 1.05  # noqa: E731
    verdict = judge(records(healthy, stable_rank=curve))
    assert verdict is not None and (verdict.rule, verdict.step) == ("rank_collapse", 400)


def test_one_low_measurement_of_the_rank_is_not_enough() -> None:
    assert judge(records(healthy, stable_rank=lambda step: 1.1 if step == 300 else 12.0)) is None
