"""Each rule of the loss at its very step, with its limit and its sentence, against averages that NumPy takes.

An average is a mean whose weights halve with every ten ticks of age; here it is taken of the whole past at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from altgrad.collapse import CollapseDetector
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict
from tests.support.results.collapse_curves import CAP, CONFIG, Record, judge, records

LONG = CONFIG.altered(max_steps=1000)  # a tick is two steps


def average(values: NDArray[np.float64], half_life: float) -> NDArray[np.float64]:
    """For each step the weighted mean of all values up to it."""
    ages = np.arange(len(values))
    weights = np.tril(0.5 ** ((ages[:, None] - ages[None, :]) / half_life))
    return weights @ values / weights.sum(axis=1)


def one(rows: list[Record], config: TrainConfig = CONFIG, vocabulary: int | None = 256) -> Verdict:
    verdict = judge(rows, config, vocabulary)
    assert verdict is not None
    return verdict


def rise(step: int) -> float:
    return 4 - 0.01 * step if step <= 150 else 4.5


@pytest.mark.parametrize(("config", "pace"), [(CONFIG, 1), (LONG, 2)])
def test_diverged_comes_with_the_last_step_of_its_patience(config: TrainConfig, pace: int) -> None:
    smoothed = average(np.array([rise(step) for step in range(1, 500)]), 10 * pace)
    best = int(smoothed[:160].argmin())
    limit = smoothed[best] + 0.5
    since = best + int(np.argmax(smoothed[best:] > limit)) + 1
    at = since + 80 * pace - 1
    found = one(records(rise), config)
    assert (found.rule, found.metric, found.step) == ("diverged", "loss", at)
    assert (found.limit, found.value) == pytest.approx((limit, smoothed[at - 1]))
    assert found.detail == (
        f"smoothed loss above {limit:.4g} since step {since}, no recovery for {80 * pace} steps; "
        f"its best was {smoothed[best]:.4g} at step {best + 1}; a uniform model has 5.545"
    )
    nan_there = records(lambda step: math.nan if step == at else rise(step))
    assert one(nan_there, config).step == at + 1, "no verdict at a step that measured no loss"


def test_what_had_learned_little_diverges_half_way_to_uniform_and_what_had_learned_nothing_by_the_margin() -> None:
    for start, limit in ((5.2, (5.2 + CAP) / 2), (5.45, 5.95)):
        rows = records(lambda step, start=start: start - 1e-5 * step if step <= 60 else 5.5 if start == 5.2 else 8.0)
        found = one(rows)
        assert (found.rule, found.limit) == ("diverged", pytest.approx(limit, abs=1e-3)), start


def test_a_loss_of_unknown_unit_must_double_before_it_has_fallen_and_then_rise_by_thrice_its_scatter() -> None:
    for top, rule in ((1.9, "never_learned"), (2.1, "diverged")):
        found = one(records(lambda step, top=top: 1.0 if step <= 60 else top), vocabulary=None)
        assert found.rule == rule and (rule != "diverged" or found.limit == pytest.approx(2.0))
        assert "uniform" not in found.detail

    def scattered(step: int) -> float:
        level = 1.6 if step <= 20 else 1.0 if step <= 200 else 2.0
        return level + (0.1 if step % 2 else -0.1)

    found = one(records(scattered), vocabulary=None)
    assert found.rule == "diverged" and found.limit == pytest.approx(1.0 + 3 * 0.1, abs=0.06)
    calm = one(records(lambda step: 1.6 if step <= 20 else 1.0 if step <= 300 else 2.0), vocabulary=None)
    assert calm.limit == pytest.approx(1.0 + max(0.5 / 3 * 0.6, 1.6 / 12), abs=1e-3)
    deep = one(records(lambda step: 4.0 if step <= 20 else 1.0 if step <= 300 else 2.0), vocabulary=None)
    assert deep.limit == pytest.approx(1.0 + 0.5 / 3 * 3.0, abs=1e-3)


@pytest.mark.parametrize(
    ("config", "deadline"),
    [
        (CONFIG, 200),
        (CONFIG.altered(max_steps=496), 199),  # 0.4 of 496 is 198.4
        (CONFIG.altered(warmup_steps=180), 230),
        (LONG.altered(warmup_steps=380), 480),
    ],
)
def test_never_learned_comes_at_the_deadline(config: TrainConfig, deadline: int) -> None:
    curve = np.array([5.5 - 1e-4 * step for step in range(1, 1001)])
    best = average(curve, 10 * max(1, config.max_steps / 500))[deadline - 1]
    start = curve[2]  # the median of the first five
    found = one(records(lambda step: float(curve[step - 1]), 1000), config)
    assert (found.rule, found.step, found.metric) == ("never_learned", deadline, "loss")
    assert (found.value, found.limit) == pytest.approx((best, start - 0.15))
    assert found.detail == (
        f"best smoothed loss {best:.3f} (step {deadline}) is within 0.15 nats of the start, {start:.3f}, "
        f"after {deadline} steps"
    )


def test_never_learned_waits_where_few_steps_are_reported() -> None:
    rows = [row for row in records(lambda step: 5.5) if row["step"] % 20 == 0]
    assert one(rows).step == 400, "with the twentieth record its average is settled"


@pytest.mark.parametrize(
    ("start", "level", "judged"),
    [
        (7.0, 5.40, True),
        (7.0, 5.39, False),
        (5.5, 5.36, True),
        (5.5, 5.34, False),
        (2.78, 2.78, True),
        (CAP / 2, CAP / 2, True),
        (2.76, 2.76, False),
    ],
)
def test_who_has_learned_is_measured_from_the_start_or_from_uniform(start: float, level: float, judged: bool) -> None:
    """CAP - 0.15 = 5.395, and half of CAP is 2.773."""
    verdict = judge(records(lambda step: start if step <= 5 else level))
    assert (verdict is not None and verdict.rule == "never_learned") == judged


@pytest.mark.parametrize(("level", "judged"), [(5.38, False), (5.41, True), (5.6, True)])
def test_given_weights_need_not_learn_unless_they_are_as_good_as_none(level: float, judged: bool) -> None:
    given = CONFIG.altered(start_from="weights.pt")
    verdict = judge(records(lambda step: level), given)
    assert (verdict is not None and verdict.rule == "never_learned") == judged
    assert judge(records(lambda step: level), given, None) is None and one(records(lambda step: level)) is not None


def test_a_loss_of_unknown_unit_that_nowhere_fell_is_said_to_have_stayed_where_it_is() -> None:
    found = one(records(lambda step: 0.09 + (0.01 if step % 2 else -0.01)), vocabulary=None)
    assert (found.rule, found.step, found.metric) == ("never_learned", 200, "loss")
    # 3.5 standard errors of an average of half-life 25 of batches with the standard deviation 1.25 * 0.01
    margin = 3.5 * 1.25 * 0.01 * math.sqrt((1 - 0.5 ** (1 / 25)) / (1 + 0.5 ** (1 / 25)))
    assert (found.value, found.limit) == (pytest.approx(0.09, abs=3e-4), pytest.approx(0.09 - 2 * margin, abs=5e-4))
    assert found.detail == (
        f"the average loss, {found.value:.4g}, has in 200 steps nowhere fallen by more than the scatter of the "
        f"batches explains; below {found.limit:.4g} it would have"
    )


@pytest.mark.parametrize(("config", "at"), [(CONFIG, 110), (LONG, 170)])
def test_a_gap_is_judged_with_the_last_step_of_its_patience_after_warm_up(config: TrainConfig, at: int) -> None:
    found = one(records(lambda step: 4 - step / 500, gap_to_baseline=lambda step: 0.31), config)
    assert (found.rule, found.step, found.value, found.limit) == ("gap_to_baseline", at, 0.31, 0.3)
    assert found.metric == "gap_to_baseline"
    assert found.detail == (
        f"more than 0.3 nats behind the baseline since step 51, not catching up for {at - 50} steps"
    )  # fmt: skip
    measured_later = records(lambda step: 4 - step / 500, gap_to_baseline=lambda step: 0.31 if step != at else math.nan)
    assert one(measured_later, config).step == at + 1
    assert judge(records(lambda step: 4 - step / 500, gap_to_baseline=lambda step: 0.3), config) is None


def test_a_gap_of_unknown_unit_is_a_tenth_of_what_the_baseline_learned_and_none_while_that_may_be_chance() -> None:
    def own(step: int) -> float:
        return 0.09 if step <= 40 else 0.05

    # the baseline is at 0.05 - 0.044 = 0.006
    found = one(records(own, gap_to_baseline=lambda step: 0.044 if step > 300 else math.nan), vocabulary=None)
    assert (found.rule, found.limit) == ("gap_to_baseline", pytest.approx((0.09 - 0.006) / 10, rel=0.02))
    assert "nats" not in found.detail
    assert judge(records(own, gap_to_baseline=lambda step: 0.004), vocabulary=None) is None  # of (0.09 - 0.046) / 10

    def risen(step: int) -> float:
        return 0.09 if step <= 20 else 0.15 + (0.02 if step % 2 else -0.02)

    # the baseline is at 0.05: it learned 0.04, less than three times 0.02; ... at -0.05: 0.14, and 0.06 is the limit
    chance = records(risen, 390, gap_to_baseline=lambda step: 0.1)
    assert judge(chance, LONG, None) is None
    clear = one(records(risen, 390, gap_to_baseline=lambda step: 0.2), LONG, None)
    assert (clear.rule, clear.limit) == ("gap_to_baseline", pytest.approx(0.06, rel=0.2))


def test_a_gap_recovers_with_six_percent_of_itself_and_needs_a_start_to_be_measured_by() -> None:
    for later, at in ((1.9, 110), (1.87, 162)):
        rows = records(lambda step: 4 - step / 500, gap_to_baseline=lambda step, x=later: 2.0 if step < 102 else x)
        assert one(rows).step == at, later
    flat = one(records(lambda step: 0.09, gap_to_baseline=lambda step: 0.5), CONFIG.altered(warmup_steps=0), None)
    assert (flat.rule, flat.step, flat.limit) == ("gap_to_baseline", 64, pytest.approx(0.5 / 10))
    few = [row for row in records(lambda step: 0.09, 99, gap_to_baseline=lambda step: 0.5) if row["step"] % 30 == 0]
    assert judge(few, vocabulary=None) is None


def bad_of_four(bad: int) -> Callable[[int], float]:
    return lambda step: math.nan if step % 4 < bad and step > 20 else 4 - step / 500


@pytest.mark.parametrize(("config", "pace"), [(CONFIG, 1), (LONG, 2)])
def test_a_run_most_of_whose_steps_are_bad_is_judged_once_their_share_is_known(config: TrainConfig, pace: int) -> None:
    rows = records(bad_of_four(3))
    shares = average(np.array([float(math.isnan(row["loss"])) for row in rows]), 40 * pace)
    settled = 80 * pace  # two half-lives
    at = next(s for s in range(settled, 500) if math.isnan(rows[s - 1]["loss"]) and shares[s - 1] > 0.55)
    found = one(rows, config)
    assert (found.rule, found.step, found.metric) == ("non_finite", at, "loss")
    share = f"{shares[at - 1]:.0%}"
    assert found.detail == (
        f"loss nan; loss or gradients not finite at {share} of the recent steps, which did not move the weights"
    )
    assert judge(records(bad_of_four(2)), config) is None

    relayed = CollapseDetector(config, 256)
    for row in rows[:at]:
        state = json.loads(json.dumps(relayed.state_dict(), allow_nan=False))
        relayed = CollapseDetector(config, 256)
        relayed.load_state_dict(state)
        relayed.update(row)
    assert relayed.verdict is not None and relayed.verdict.detail == found.detail


def test_what_is_named_is_the_first_quantity_that_is_not_finite() -> None:
    def found(**bad: float) -> tuple[str, float, float]:
        rows = records(lambda step: 4 - step / 500)
        for row in rows[100:]:
            row.update({"gradient_norm": 1.0} | bad)
        verdict = one(rows)
        assert verdict.step == 105 and verdict.detail.endswith("at 5 steps in a row since step 101")
        return verdict.metric, verdict.value, verdict.limit

    assert found(loss=math.inf, non_finite_gradients=0.25, gradient_norm=math.nan) == ("loss", math.inf, math.inf)
    assert found(non_finite_gradients=0.25, gradient_norm=math.nan) == ("non_finite_gradients", 0.25, 0.0)
    assert found(non_finite_gradients=0.0, gradient_norm=math.inf) == ("gradient_norm", math.inf, math.inf)
