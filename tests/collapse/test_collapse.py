"""Curves that must not be condemned; detectors that were stored and restored, or see few steps."""

from __future__ import annotations

import json
import math
import random

import pytest

from altgrad.collapse import CollapseDetector
from tests.support.results.collapse_curves import (
    CAP,
    CONFIG,
    HEALTHY_CURVES,
    INTERVAL,
    STEPS,
    VOCABULARY,
    Record,
    diverging,
    healthy,
    judge,
    noisy,
    records,
)


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


COLLAPSES: dict[str, list[Record]] = {
    "non_finite": records(lambda step: math.nan if step > 60 else healthy(step), 120),
    "diverged": records(lambda step: healthy(step) if step < 60 else CAP, 160),
    "stalled": records(lambda step: CAP, 160, realised_displacement=lambda step: 0.0),
    "never_learned": records(lambda step: CAP, 210),
    "rank_collapse": records(healthy, 260, stable_rank=lambda step: 9.0 if step < 140 else 1.01),
    "gap_to_baseline": records(healthy, 240, gap_to_baseline=lambda step: 1.5),
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
