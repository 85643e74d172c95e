"""Hand-written curves: what must not fire, what must, at which step; and detectors that were stored and restored."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable

import pytest

from altgrad.collapse import BaselineGap, CollapseDetector
from altgrad.collapse.smoothing import HALF_LIFE, REACH, Smoothed
from altgrad.results import Verdict
from altgrad.training.config import TrainConfig

VOCABULARY = 256
CAP = math.log(VOCABULARY)  # 5.545
STEPS = 500
INTERVAL = 50
CONFIG = TrainConfig(max_steps=STEPS, warmup_steps=50, diagnostic_interval=INTERVAL)
Record = dict[str, float]


def healthy(step: int) -> float:
    """A tiny byte-level GPT without noise: 5.55 at the start, about 3.3 at 40, 2.5 at 200, 2.2 at 500."""
    return 2.15 + 2.5 * math.exp(-step / 18) + 0.9 * math.exp(-step / 180)


def records(loss: Callable[[int], float], steps: int = STEPS, **metrics: Callable[[int], float]) -> list[Record]:
    """One record per step from 1; the metrics only where a diagnostic measures, the gap at every step."""
    rows = []
    for step in range(1, steps + 1):
        row: Record = {"step": step, "loss": loss(step)}
        for name, curve in metrics.items():
            if step % INTERVAL == 0 or name in ("gap_to_baseline", "non_finite_gradients"):
                row[name] = curve(step)
        rows.append(row)
    return rows


def judge(rows: Iterable[Record], config: TrainConfig = CONFIG, vocabulary: int | None = VOCABULARY) -> Verdict | None:
    detector = CollapseDetector(config, vocabulary)
    for row in rows:
        detector.update(row)
    return detector.verdict


def heavy_tailed(rng: random.Random, scale: float) -> float:
    """Student t with 2.5 degrees of freedom: infinite kurtosis, outliers of many sigma."""
    return scale * rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.25, 1 / 1.25))


def noisy(curve: Callable[[int], float], seed: int, scale: float = 0.12) -> Callable[[int], float]:
    """The curve with heavy-tailed noise; a loss is never below 0."""
    rng = random.Random(seed)
    return lambda step: max(0.0, curve(step) + heavy_tailed(rng, scale))


def spiked(start: int, length: int, top: float, heal: float = 8.0) -> Callable[[int], float]:
    """Healthy, but at `top` for `length` steps, then falling back with time constant `heal`."""

    def loss(step: int) -> float:
        if step < start:
            return healthy(step)
        if step < start + length:
            return top
        return healthy(step) + (top - healthy(step)) * math.exp(-(step - start - length + 1) / heal)

    return loss


def bumps(step: int) -> float:
    """Warm restarts of the learning rate: every 120 steps 0.7 nats up, falling back over 30 steps."""
    return healthy(step) + (0.7 * math.exp(-(step % 120) / 30) if step >= 120 else 0.0)


def plateau_then_drop(step: int) -> float:
    return 5.54 - 2.2 * min(step, 40) / 40 if step < 400 else 3.34 - 1.2 * (1 - math.exp(-(step - 400) / 20))


def late_start(step: int) -> float:
    """Stays at its start for 35 % of the run, then learns."""
    return 5.545 if step < 175 else healthy(step - 174)


def cosine_tail(step: int) -> float:
    """Converged: exactly flat for the second half."""
    return healthy(min(step, 250))


HEALTHY_CURVES = {
    "healthy": healthy,
    "bumps": bumps,
    "plateau_then_drop": plateau_then_drop,
    "late_start": late_start,
    "flat_tail": cosine_tail,
    "spike_of_1": spiked(200, 1, 9.0),
    "spike_of_1_without_bound": lambda step: 1e30 if step == 200 else healthy(step),
    "spike_of_20": spiked(200, 20, CAP),
    "spike_of_50": spiked(200, 50, CAP),
    "spike_of_50_slow_to_heal": spiked(200, 50, CAP, heal=60.0),
    "spike_at_the_start": spiked(30, 20, 8.0),
    "two_spikes": lambda step: max(spiked(150, 30, CAP)(step), spiked(300, 40, CAP)(step)),
    "slow_from_the_cap": lambda step: CAP - 0.004 * step,
    "start_far_above_the_cap": lambda step: healthy(step) + 300 * math.exp(-step / 10),
}


@pytest.mark.parametrize("vocabulary", [VOCABULARY, None])
@pytest.mark.parametrize("name", HEALTHY_CURVES)
def test_a_run_that_heals_or_is_only_slow_is_not_condemned(name: str, vocabulary: int | None) -> None:
    assert judge(records(HEALTHY_CURVES[name]), vocabulary=vocabulary) is None
    for seed in range(5):
        assert judge(records(noisy(HEALTHY_CURVES[name], seed)), vocabulary=vocabulary) is None, seed


def test_two_hundred_heavy_tailed_healthy_curves_raise_no_alarm() -> None:
    alarms = []
    for seed in range(200):
        rng = random.Random(10_000 + seed)
        rank = [1 + 30 * math.exp(-0.35 * i) + 4 * rng.random() for i in range(STEPS // INTERVAL + 1)]
        rows = records(
            noisy(healthy, seed),
            realised_displacement=lambda step, rng=rng: rng.gauss(0.9, 0.2),
            stable_rank=lambda step, rank=rank: rank[step // INTERVAL],
            gap_to_baseline=lambda step, rng=rng: rng.gauss(0.1, 0.1),
        )
        verdict = judge(rows)
        if verdict is not None:
            alarms.append((seed, verdict.sentence()))
    assert not alarms


def test_a_run_shorter_than_the_windows_never_fires() -> None:
    for steps in (1, 2, 10, 20, 40):
        config = CONFIG.altered(max_steps=steps)
        assert judge(records(lambda step: CAP, steps, realised_displacement=lambda step: 0.0), config) is None


# --- non_finite


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
    assert judge(records(healthy, non_finite_gradients=lambda step: 0.25 if step % 5 else 0.0)) is None


def test_nan_and_non_finite_gradients_in_turn_are_one_series() -> None:
    rows = records(healthy)
    for row in rows[100:]:
        row.update({"loss": math.nan} if row["step"] % 2 else {"non_finite_gradients": 1.0})
    verdict = judge(rows)
    assert verdict is not None and (verdict.rule, verdict.step) == ("non_finite", 105)


# --- diverged


def diverging(step: int) -> float:
    return healthy(step) if step < 200 else min(CAP, healthy(200) + 0.1 * (step - 200))


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


# --- never_learned


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


# --- stalled


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


def test_one_window_that_moves_starts_the_count_again() -> None:
    moves = lambda step: 0.9 if step <= 200 or step in (300, 400, 500) else 0.0  # noqa: E731
    assert judge(records(cosine_tail, realised_displacement=moves)) is None


def test_stalling_during_a_long_warm_up_is_not_judged() -> None:
    config = CONFIG.altered(max_steps=5000, warmup_steps=1000)
    curve = lambda step: CAP if step < 900 else healthy(step - 899)  # noqa: E731
    rows = records(curve, 2000, realised_displacement=lambda step: 0.0 if step <= 900 else 0.9)
    assert judge(rows, config) is None


# --- rank_collapse


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


# --- gap_to_baseline


def test_a_constant_gap_fires_when_the_patience_after_warm_up_ends() -> None:
    verdict = judge(records(healthy, gap_to_baseline=lambda step: 1.3))
    assert verdict is not None
    assert (verdict.step, verdict.rule) == (CONFIG.warmup_steps + CONFIG.gap_patience, "gap_to_baseline")
    assert (verdict.metric, verdict.value, verdict.limit) == ("gap_to_baseline", 1.3, CONFIG.gap_limit)


@pytest.mark.parametrize(
    "gap",
    [
        lambda step: 0.95,
        lambda step: 3.0 if step % 100 else 0.5,
        lambda step: 3.0 if step <= 140 else 0.2,
        lambda step: 3.0 * math.exp(-step / 250),
        lambda step: math.nan,
    ],
    ids=["below", "interrupted", "early", "catching_up", "nan"],
)
def test_a_gap_that_is_small_or_closes_does_not_fire(gap: Callable[[int], float]) -> None:
    assert judge(records(healthy, gap_to_baseline=gap)) is None


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


# --- smoothing


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


# --- replay, restore, long runs

COLLAPSES: dict[str, list[Record]] = {
    "non_finite": records(lambda step: math.nan if step > 60 else healthy(step), 120),
    "diverged": records(lambda step: healthy(step) if step < 60 else CAP, 160),
    "stalled": records(lambda step: CAP, 160, realised_displacement=lambda step: 0.0),
    "never_learned": records(lambda step: CAP, 210),
    "rank_collapse": records(healthy, 260, stable_rank=lambda step: 9.0 if step < 140 else 1.01),
    "gap_to_baseline": records(healthy, 180, gap_to_baseline=lambda step: 1.5),
}


@pytest.mark.parametrize("rule", COLLAPSES)
def test_a_detector_restored_at_any_step_gives_the_same_verdict_at_the_same_step(rule: str) -> None:
    rows = COLLAPSES[rule]
    straight = CollapseDetector(CONFIG, VOCABULARY)
    expected = [straight.update(row) for row in rows]
    assert straight.verdict is not None and straight.verdict.rule == rule
    relayed = CollapseDetector(CONFIG, VOCABULARY)
    for row, verdict in zip(rows, expected, strict=True):
        state = json.loads(json.dumps(relayed.state_dict(), allow_nan=False))
        relayed = CollapseDetector(CONFIG, VOCABULARY)
        relayed.load_state_dict(state)
        assert repr(relayed.update(row)) == repr(verdict)  # repr: NaN equals NaN


@pytest.mark.parametrize("rule", COLLAPSES)
def test_replayed_steps_change_nothing(rule: str) -> None:
    rows = COLLAPSES[rule]
    straight, replayed = CollapseDetector(CONFIG, VOCABULARY), CollapseDetector(CONFIG, VOCABULARY)
    for index, row in enumerate(rows):
        straight.update(row)
        replayed.update(row)
        for earlier in rows[max(0, index - 7) : index + 1]:
            replayed.update(earlier | {"loss": 1.0})
        assert replayed.state_dict() == straight.state_dict()


def test_the_first_verdict_stays() -> None:
    rows = COLLAPSES["diverged"]
    detector = CollapseDetector(CONFIG, VOCABULARY)
    verdicts = [detector.update(row) for row in rows]
    first = next(verdict for verdict in verdicts if verdict is not None)
    later = [detector.update({"step": step, "loss": math.nan}) for step in range(1000, 1020)]
    assert {id(verdict) for verdict in later} == {id(first)} == {id(detector.verdict)}


def test_every_rule_speaks_in_whole_verdicts() -> None:
    for rule, rows in COLLAPSES.items():
        verdict = judge(rows)
        assert verdict is not None and verdict.rule == rule
        assert verdict.metric in ("loss", "realised_displacement", "stable_rank", "gap_to_baseline")
        assert "step" in verdict.detail and len(verdict.detail) > 30
        assert isinstance(verdict.value, float) and isinstance(verdict.limit, float)


@pytest.mark.parametrize("every", [5, 10])
def test_a_detector_that_sees_only_every_nth_step_reaches_the_same_conclusions(every: int) -> None:
    """As a sweep's stopper may: over ten times the steps, the same curves."""
    config = CONFIG.altered(max_steps=5000, warmup_steps=500)
    stretched = {name: (lambda step, f=f: f(step // 10)) for name, f in (("healthy", healthy), ("diverged", diverging))}
    stretched["never_learned"] = lambda step: CAP
    for name, curve in stretched.items():
        for seed in range(5):
            noise = 0.03 if name == "never_learned" else 0.12
            rows = [row for row in records(noisy(curve, seed, noise), 5000) if row["step"] % every == 0]
            verdict = judge(rows, config)
            assert (verdict.rule if verdict else "healthy") == name, (seed, verdict)


def test_a_hundred_thousand_steps_of_slow_progress_raise_no_alarm() -> None:
    """Reported every tenth step, power-law loss, rank falling to a hundredth of its start over the run."""
    config = CONFIG.altered(max_steps=100_000, warmup_steps=2000)
    noise = noisy(lambda step: 1.7 + 3.85 / (1 + step / 300) ** 0.6, 7, 0.05)
    rows = []
    for step in range(10, 100_001, 10):
        row: Record = {"step": step, "loss": noise(step)}
        if step % 500 == 0:
            row |= {"realised_displacement": 0.8, "stable_rank": 1 + 190 / (1 + step / 1000)}
        rows.append(row)
    assert judge(rows, config, vocabulary=50_257) is None
