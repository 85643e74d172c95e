"""Verdicts know neither the unit of a loss that has none, nor the length of a run: properties over many curves."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from altgrad.collapse import gap_to_baseline
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict, read_run
from altgrad.training import run_format_experiment
from tests.support.results.collapse_curves import CONFIG, STEPS, Record, healthy, heavy_tailed, judge, records

pytestmark = pytest.mark.long

SEEDS = 12  # of a curve's noise

Curve = Callable[[int], float]


def jumps(step: int) -> float:
    """A curriculum: every 125 steps harder examples, 40 % of what was learned back up, then learned as well."""
    return 0.3 + 1.7 * math.exp(-step / 40) + (0.7 * math.exp(-(step % 125) / 25) if step >= 125 else 0.0)


def regression(step: int) -> float:
    """Mean squared error of a small network, FP32: .09 at the start, .004 at the end."""
    return 0.004 + 0.086 * math.exp(-step / 60)


# Healthy losses of unknown unit, with the noise of their batches: relative to the loss, or absolute.
HEALTHY: dict[str, tuple[Curve, float, float]] = {
    "regression": (regression, 0.2, 0.0),
    "regression_noisy": (regression, 0.5, 0.0),
    "regression_to_1e-8": (lambda s: 1e-8 + 0.5 * math.exp(-s / 25), 0.3, 0.0),
    "regression_slow": (lambda s: 4000 / (1 + s / 100), 0.3, 0.0),
    "power_law": (lambda s: 1.7 + 3.85 / (1 + s / 30) ** 0.6, 0.0, 0.05),
    "power_law_to_zero": (lambda s: 80.0 * s**-0.5, 0.1, 0.0),
    "cosine": (lambda s: 1.2 + 0.9 * math.cos(math.pi * s / STEPS), 0.0, 0.1),
    "warm_restarts": (lambda s: healthy(s) + (0.7 * math.exp(-(s % 120) / 30) if s >= 120 else 0.0), 0.0, 0.12),
    "slow_start": (lambda s: 5.5 if s < 150 else healthy(s - 149), 0.0, 0.05),
    "straight_line": (lambda s: 3.0 - 0.003 * s, 0.0, 0.1),
    "plateau_at_the_end": (lambda s: 0.7 + math.exp(-min(s, 200) / 50), 0.0, 0.05),
    "two_plateaus": (lambda s: 1.0 if s < 60 else 0.6 if s < 350 else 0.2, 0.1, 0.0),
    "curriculum": (jumps, 0.05, 0.0),
    "negative_log_likelihood": (lambda s: -900.0 - 300 * (1 - math.exp(-s / 90)), 0.0, 20.0),
    "evidence_bound_through_zero": (lambda s: 40 - 3.0 * s**0.6, 0.0, 3.0),
    "from_exactly_zero_down": (lambda s: -0.01 * (s - 1), 0.0, 0.0),
    "exactly_zero_for_a_while": (lambda s: 0.0 if s <= 20 else 2.0 * math.exp(-(s - 20) / 60), 0.2, 0.0),
    "always_exactly_zero": (lambda s: 0.0, 0.0, 0.0),
    "memorised": (lambda s: max(0.0, 1 - s / 100), 0.0, 0.0),
    "large_offset": (lambda s: 1e4 + 50 * math.exp(-s / 80), 0.0, 5.0),
    "spike_that_heals": (lambda s: regression(s) + (3.0 * math.exp(-(s - 250) / 8) if s >= 250 else 0.0), 0.2, 0.0),
    "spike_of_one": (lambda s: 1e12 if s == 300 else regression(s), 0.2, 0.0),
    "spike_before_learning": (lambda s: 1e12 if s == 30 else 5.5 if s < 100 else healthy(s - 99), 0.0, 0.05),
    "wild_start": (lambda s: healthy(s) + 300 * math.exp(-s / 10), 0.0, 0.1),
    "bump_of_the_warm_up": (lambda s: regression(s) + 0.05 * math.exp(-(((s - 40) / 12) ** 2)), 0.2, 0.0),
}


def noised(name: str, seed: int, table: dict[str, tuple[Curve, float, float]] = HEALTHY) -> Curve:
    """The curve with heavy-tailed noise; relative noise keeps the sign."""
    curve, relative, absolute = table[name]
    rng = random.Random(f"{name} {seed}")
    noise = [(heavy_tailed(rng, 1.0), rng.gammavariate(4, 0.25)) for _ in range(STEPS + 1)]
    return lambda s: curve(s) * (1 - relative + relative * noise[s][1]) + absolute * noise[s][0]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_loss_of_unknown_unit_is_not_condemned(name: str) -> None:
    assert judge(records(HEALTHY[name][0]), vocabulary=None) is None
    for seed in range(SEEDS):
        verdict = judge(records(noised(name, seed)), vocabulary=None)
        assert verdict is None, (seed, verdict)


def until(start: int, before: Curve, after: Curve) -> Curve:
    return lambda s: before(s) if s < start else after(s)


# Sick losses of unknown unit: curve, noise as above; then the rule, and the steps between which it must speak.
SICK: dict[str, tuple[Curve, float, float]] = {
    "explodes": (until(200, regression, lambda s: 1e4), 0.2, 0.0),
    "explodes_at_once": (lambda s: min(1e6, 0.5 * 1.2**s), 0.1, 0.0),
    "rises_fast": (until(200, regression, lambda s: min(0.09, regression(200) + 0.002 * (s - 200))), 0.2, 0.0),
    "rises_slowly": (until(150, regression, lambda s: regression(150) + 0.0003 * (s - 150)), 0.1, 0.0),
    "rises_below_zero": (lambda s: -1000 + max(-2 * s, -300 + 3 * max(0, s - 200)), 0.0, 10.0),
    "stalls_at_ln_10": (lambda s: math.log(10), 0.0, 0.05),
    "stalls_high": (lambda s: 3e5, 0.2, 0.0),
    "stalls_low": (lambda s: 2e-7, 0.3, 0.0),
    "stalls_below_zero": (lambda s: -12.0, 0.0, 1.0),
    "rises_from_the_start": (lambda s: 2.0 + 0.001 * s, 0.0, 0.05),
    "recovers_then_dies": (
        lambda s: regression(s) + (0.3 * math.exp(-(s - 150) / 10) if 150 <= s < 260 else 0.5 if s >= 260 else 0.0),
        0.2,
        0.0,
    ),
    "recovers_half_way": (until(150, regression, lambda s: 0.045 + 0.05 * math.exp(-(s - 150) / 10)), 0.2, 0.0),
    "nan_in_the_middle": (until(250, regression, lambda s: math.nan), 0.2, 0.0),
}
EXPECTED: dict[str, tuple[str, int, int]] = {
    "explodes": ("diverged", 280, 290),
    "explodes_at_once": ("diverged", 95, 130),
    "rises_fast": ("diverged", 281, 310),
    "rises_slowly": ("diverged", 260, 330),
    "rises_below_zero": ("diverged", 290, 330),
    "stalls_at_ln_10": ("never_learned", 200, 200),
    "stalls_high": ("never_learned", 200, 200),
    "stalls_low": ("never_learned", 200, 200),
    "stalls_below_zero": ("never_learned", 200, 200),
    "rises_from_the_start": ("never_learned", 200, 200),
    "recovers_then_dies": ("diverged", 335, 360),
    "recovers_half_way": ("diverged", 229, 400),
    "nan_in_the_middle": ("non_finite", 254, 254),
}


@pytest.mark.parametrize("name", SICK)
def test_a_sick_loss_of_unknown_unit_is_found_in_time(name: str) -> None:
    rule, first, last = EXPECTED[name]
    curves = [SICK[name][0], *(noised(name, seed, SICK) for seed in range(SEEDS))]
    verdicts = [judge(records(curve), vocabulary=None) for curve in curves]
    assert {verdict and verdict.rule for verdict in verdicts} == {rule}
    for verdict in verdicts:
        assert verdict is not None and first <= verdict.step <= last, verdict
        assert "nats" not in verdict.detail + verdict.sentence()


def verdict_of(rows: list[Record], config: TrainConfig = CONFIG) -> tuple[str, int] | None:
    verdict = judge(rows, config, vocabulary=None)
    return None if verdict is None else (verdict.rule, verdict.step)


def with_metrics(curve: Curve, seed: int) -> list[Record]:
    """In some seeds with a baseline that learns on, weights that freeze at 250, a rank that falls at 350."""
    gaps = gap_to_baseline(CONFIG, None, {s: regression(s) for s in range(1, STEPS + 1)}) if seed % 2 else None
    rows = records(
        curve,
        realised_displacement=lambda s: 0.02 if s > 250 and seed % 3 == 0 else 0.9,
        stable_rank=lambda s: 1.1 if s > 350 and seed % 5 == 0 else 12.0,
    )
    for row in rows if gaps is not None else []:
        row |= {"gap_to_baseline": gap} if (gap := gaps.update(int(row["step"]), row["loss"])) is not None else {}
    return rows


ALL = HEALTHY | SICK


@pytest.mark.parametrize("name", ALL)
def test_a_loss_times_any_constant_is_judged_alike_at_the_same_step(name: str) -> None:
    rng = random.Random(name)
    for seed in range(4):
        rows = with_metrics(noised(name, seed, ALL), seed)
        expected = verdict_of(rows)
        for factor in (10 ** rng.uniform(-6, 6), *((1e-6, 1 / 3) if seed % 2 else (1e6, 2.0**13))):
            scaled = [
                row | {key: row[key] * factor for key in ("loss", "gap_to_baseline") if key in row} for row in rows
            ]
            assert verdict_of(scaled) == expected, (seed, factor)


def test_the_curves_above_bring_every_rule() -> None:
    """Or the properties would hold for nothing."""
    found = {verdict_of(with_metrics(noised(name, seed, ALL), seed)) for name in ALL for seed in range(6)}
    rules = {verdict[0] for verdict in found if verdict is not None}
    assert rules == {"non_finite", "diverged", "never_learned", "stalled", "rank_collapse", "gap_to_baseline"}


def stretched(rows: list[Record], k: int) -> list[Record]:
    """The same run, k times as long: every batch counts k times, every measurement comes k times as late."""
    out = []
    for row in rows:
        measured = {key: value for key, value in row.items() if key not in ("realised_displacement", "stable_rank")}
        out += [measured | {"step": k * (int(row["step"]) - 1) + i} for i in range(1, k)]
        out.append(row | {"step": k * int(row["step"])})
    return out


def test_a_run_k_times_as_long_is_judged_k_times_as_late() -> None:
    clear = [name for name in SICK if name != "recovers_half_way"]  # noise decides when it counts as recovering
    runs = [(records(noised(name, seed, SICK)), None) for name in clear for seed in range(3)]
    runs += [(with_metrics(ALL[name][0], seed), None) for name in ALL for seed in (6, 10)]
    runs += [(with_metrics(lambda s: 0.06 + 0.03 * math.exp(-s / 30), 1), None)]
    runs += [(records(lambda s, f=f: 5.545 * min(1.0, f(s) / f(1))), 256) for f, _, _ in ALL.values() if f(1) > 0]
    rules = set()
    for (rows, vocabulary), k in zip(runs, itertools.cycle((2, 5)), strict=False):
        config = CONFIG.altered(max_steps=k * STEPS, warmup_steps=k * 50, diagnostic_interval=k * 50)
        before, after = judge(rows, vocabulary=vocabulary), judge(stretched(rows, k), config, vocabulary)
        assert (before and before.rule) == (after and after.rule), (before, after)
        if before is not None and after is not None:
            rules.add(before.rule)
            assert after.step == pytest.approx(k * before.step, rel=0.12, abs=k * 8), (before, after)
    assert len(rules) == 6


@pytest.mark.parametrize("vocabulary", [None, 256, 50_257])
def test_a_run_of_50_000_steps_is_not_judged_in_its_first_steps(vocabulary: int | None) -> None:
    """Flat, frozen, of fallen rank and far behind for some 1,000 steps, measured every 50; then it learns."""
    config = CONFIG.altered(max_steps=50_000, warmup_steps=100)
    start = 5.5 if vocabulary is None else math.log(vocabulary)
    rows: list[Record] = []
    for step in range(10, 20_000, 10):
        row: Record = {"step": step, "loss": start - (2.5 * (1 - math.exp(-(step - 4000) / 900)) if step > 4000 else 0)}
        row["gap_to_baseline"] = 3.0 if step <= 4000 else 0.1
        if step % 50 == 0:
            row |= {"realised_displacement": 0.01 if step <= 4000 else 0.9}
            row |= {"stable_rank": 20.0 if step < 200 else 1.2 if step <= 2000 else 15.0}
        rows.append(row)
    assert judge(rows, config, vocabulary) is None


def test_a_run_that_keeps_recovering_is_not_judged_while_it_recovers() -> None:
    """From ten times its start back in 350 steps, or by turns; noise on top."""
    recovering = until(120, regression, lambda s: 0.004 + 0.9 * math.exp(-(s - 120) / 110))
    in_turns = lambda s: recovering(s) + (0.1 * math.exp(-(s % 60) / 9) if s > 120 else 0.0)  # noqa: E731
    for seed in range(10):
        for curve in (recovering, in_turns):
            rows = records(curve)
            rng = random.Random(seed)
            for row in rows:
                row["loss"] *= rng.gammavariate(25, 0.04)
            assert judge(rows, vocabulary=None) is None, seed
            in_nats = [row | {"loss": 1.5 + 3 * row["loss"]} for row in rows]
            assert judge(in_nats) is None, seed


@pytest.mark.parametrize("vocabulary", [None, 256])
@pytest.mark.parametrize("bad", [0.75, 0.9])
def test_a_run_most_of_whose_steps_are_skipped_is_judged(bad: float, vocabulary: int | None) -> None:
    spoils: list[Record] = [{"loss": math.nan}, {"gradient_norm": math.inf},
                            {"non_finite_gradients": 0.01, "gradient_norm": math.nan}]  # fmt: skip
    for seed in range(5):
        rng = random.Random(seed)
        for spoil in spoils:
            rows, in_a_row = records(healthy), 0
            for row in rows[40:]:
                in_a_row = in_a_row + 1 if rng.random() < bad and in_a_row < 4 else 0  # never five in a row
                row |= spoil if in_a_row else {}
            verdict = judge(rows, vocabulary=vocabulary)
            assert verdict is not None and verdict.rule == "non_finite" and 80 <= verdict.step <= 350, verdict


def test_a_run_that_skips_a_step_now_and_then_is_not_judged() -> None:
    for seed in range(10):
        rng = random.Random(seed)
        rows = records(healthy)
        for row in rows:
            row |= {"gradient_norm": math.inf} if rng.random() < 0.4 and row["step"] % 4 else {}
        assert judge(rows) is None


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_a_classifier_of_few_classes_is_judged_in_proportion(classes: int) -> None:
    """Two classes have 0.693 nats to learn in all: 0.15 of them would be a fifth."""
    cap = math.log(classes)
    assert judge(records(lambda s: cap * (0.55 + 0.45 * math.exp(-s / 120))), vocabulary=classes) is None
    assert judge(records(lambda s: cap * (0.9 + 0.1 * math.exp(-s / 120))), vocabulary=classes) is None
    falls_back = until(200, lambda s: cap * math.exp(-s / 60), lambda s: cap)
    for sick, rule in ((lambda s: cap, "never_learned"), (falls_back, "diverged")):
        verdict = judge(records(sick), vocabulary=classes)
        assert verdict is not None and verdict.rule == rule
        assert " nats of the start" in verdict.detail or f"a uniform model has {cap:.3f}" in verdict.detail


def test_a_gap_of_unknown_unit_is_measured_against_what_the_baseline_learned() -> None:
    """By hand: a run that stays at .06 is judged at step 110, where the baseline has gone from .09 to .018, so that the
    limit is a tenth of .071 (.086 (exp(-1/60) - exp(-110/60))), less what its average lags behind."""
    rng = random.Random(1)
    baseline = {s: regression(s) * rng.gammavariate(25, 0.04) for s in range(1, STEPS + 1)}

    def judged(level: float) -> Verdict | None:
        gaps, rows = gap_to_baseline(CONFIG, None, baseline), []
        for step in range(1, STEPS + 1):
            loss = level + (0.09 - level) * math.exp(-step / 30)
            gap = gaps.update(step, loss)
            rows.append({"step": step, "loss": loss} | ({} if gap is None else {"gap_to_baseline": gap}))
        return judge(rows, vocabulary=None)

    behind = judged(0.06)
    assert behind is not None and behind.rule == "gap_to_baseline" and 110 <= behind.step <= 130
    assert behind.limit == pytest.approx(0.0071, rel=0.1) and "nats" not in behind.detail
    assert judged(0.01) is None


class SquaredError(nn.Module):
    """A small network whose loss is a mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return (self.layers(inputs) - targets).square().mean()


class Points:
    """Eight numbers and a smooth function of them."""

    vocabulary = None

    def _batch(self, seed: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
        return inputs, 0.3 * torch.sin(inputs[:, :3].sum(1, keepdim=True))

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        return self._batch(step)

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self._batch(-1)]

    def digest(self) -> str:
        return "points"


def test_a_regression_trains_to_its_end_and_one_that_cannot_learn_is_reported_without_a_unit(tmp_path: Path) -> None:
    config = TrainConfig(format="FP32", max_steps=300, warmup_steps=20, learning_rate=3e-3, compile=False)
    healthy_run = run_format_experiment(config, tmp_path / "healthy", model=SquaredError(), batches=Points())
    assert healthy_run.status == "completed" and healthy_run.final_loss < 0.6 * 0.045
    frozen = config.altered(learning_rate=1e-12)
    run = run_format_experiment(frozen, tmp_path / "frozen", model=SquaredError(), batches=Points())
    assert run.verdict is not None and (run.verdict.rule, run.verdict.step) == ("never_learned", 120)
    report = (tmp_path / "frozen" / "failure_report.md").read_text().split("## Config")[0]
    assert "nats" not in report and "Training loss" in report
    assert read_run(run.folder).loss_unit == ""
