"""The smoothed loss against its definition, and the gap to a baseline that grows or is restored."""

from __future__ import annotations

import json
import math
import random

import pytest

from altgrad.collapse import BaselineGap
from altgrad.collapse.smoothing import HALF_LIFE, REACH, Smoothed
from tests.support.results.collapse_curves import healthy, noisy


def test_a_step_loses_half_its_weight_in_a_half_life() -> None:
    smoothed = Smoothed(total=1.0, weight=1.0)  # settled at 1
    for _ in range(HALF_LIFE):
        smoothed.update(0.0)
    assert smoothed.value == pytest.approx(0.5)


def test_the_smoothing_equals_the_weighted_mean_of_all_steps() -> None:
    """Slow second implementation; values stay within reach of each other."""
    rng = random.Random(3)
    values = [3 + rng.random() for _ in range(100)]
    smoothed = Smoothed()
    for count in range(1, 101):
        smoothed.update(values[count - 1])
        weights = [0.5 ** ((count - 1 - i) / HALF_LIFE) for i in range(count)]
        assert smoothed.value == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights))
        assert smoothed.settled == (count >= 2 * HALF_LIFE)


def test_one_step_lifts_a_settled_average_by_a_fifteenth_of_the_reach_at_most() -> None:
    smoothed = Smoothed(total=2.0, weight=1.0)
    smoothed.update(1e30)
    assert smoothed.value == pytest.approx(2 + REACH * (1 - 0.5 ** (1 / HALF_LIFE)))


def test_the_gap_of_a_curve_to_itself_is_zero_and_of_a_shifted_one_the_shift() -> None:
    baseline = {step: noisy(healthy, 1)(step) for step in range(1, 300)}
    same, behind = BaselineGap(baseline), BaselineGap(baseline)
    for step, loss in baseline.items():
        assert same.update(step, loss) == 0.0
        assert behind.update(step, loss + 0.7) == pytest.approx(0.7)
    assert same.update(300, 2.0) is None  # the baseline has not got there


def test_a_gap_is_measured_as_the_baseline_grows_and_equals_that_to_the_whole_baseline() -> None:
    whole = {step: healthy(step) for step in range(1, 200)}
    growing: dict[int, float] = {}
    late, full = BaselineGap(growing), BaselineGap(whole)
    for step in range(1, 200):
        expected = full.update(step, 3.0)
        if step == 100:
            growing.update(whole)
        assert late.update(step, 3.0) == (None if step < 100 else pytest.approx(expected, abs=0))


@pytest.mark.parametrize("every", [5, 10, 50])
def test_a_gap_to_a_baseline_that_reports_rarely_is_that_of_the_steps_that_both_have(every: int) -> None:
    """A run that is 0.4 behind at every step is 0.4 behind, however fast both fall and whoever reports less."""
    every_step = {step: healthy(step) for step in range(1, 301)}
    rarely = {step: loss for step, loss in every_step.items() if step % every == 0}
    to_rare, to_full = BaselineGap(rarely), BaselineGap(every_step)
    found = {step: to_rare.update(step, loss + 0.4) for step, loss in every_step.items()}
    of_rare = {step: to_full.update(step, loss + 0.4) for step, loss in rarely.items()}
    assert {step for step, gap in found.items() if gap is not None} == rarely.keys()
    assert found[every] == pytest.approx(0.4) and all(gap == pytest.approx(0.4) for gap in of_rare.values())
    assert {step: found[step] for step in rarely} == of_rare


def test_a_gap_without_two_finite_losses_is_not_measured() -> None:
    gap = BaselineGap({1: 2.0, 2: math.nan, 3: 2.0})
    assert [gap.update(1, math.nan), gap.update(2, 2.5), gap.update(3, 2.5)] == [None, None, 0.5]


def test_a_restored_gap_continues_exactly() -> None:
    baseline = {step: healthy(step) for step in range(1, 100)}
    whole = BaselineGap(baseline)
    expected = [whole.update(step, noisy(healthy, step)(step)) for step in range(1, 100)]
    first = BaselineGap(baseline)
    for step in range(1, 50):
        first.update(step, noisy(healthy, step)(step))
    second = BaselineGap(baseline)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.update(30, 9.0) is None  # a replayed step
    assert [second.update(step, noisy(healthy, step)(step)) for step in range(50, 100)] == expected[49:]


def test_a_gap_restored_while_its_steps_wait_for_the_baseline_counts_them_all() -> None:
    whole = {step: healthy(step) for step in range(1, 100)}
    full, waiting = BaselineGap(whole), BaselineGap({})
    expected = [full.update(step, 3.0) for step in range(1, 50)]
    assert [waiting.update(step, 3.0) for step in range(1, 50)] == [None] * 49
    assert full.update(50, math.nan) is None is waiting.update(50, math.nan)  # in strict JSON, too
    restored = BaselineGap(whole)
    restored.load_state_dict(json.loads(json.dumps(waiting.state_dict(), allow_nan=False)))
    expected += [full.update(step, 3.0) for step in range(51, 100)]
    assert [restored.update(step, 3.0) for step in range(51, 100)] == expected[49:]
