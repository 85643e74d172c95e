"""What a run must have learned: never_learned beside a held-out loss, and no_context beside the tokens' frequencies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from altgrad.collapse import CollapseDetector
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict, read_run
from altgrad.storage.folder import Folder
from tests.recorded import recorded_sweeps
from tests.support.results.collapse_curves import CAP, CONFIG, HEALTHY_CURVES, VOCABULARY, Record, judge, records

Curve = Callable[[int], float]
ENTROPY = 3.2  # nats; the limit is 3.05


def measured(loss: Curve, held_out: Sequence[float], every: int = 20, factor: float = 1.0) -> list[Record]:
    """Records of 500 steps with the held-out losses, of which the last one stays."""
    rows = records(lambda step: factor * loss(step))
    for row in rows:
        if row["step"] % every == 0:
            row["validation_loss"] = factor * held_out[min(int(row["step"]) // every, len(held_out)) - 1]
    return rows


def never_learned(verdict: Verdict | None) -> bool:
    assert verdict is None or (verdict.rule, verdict.step) == ("never_learned", 200)
    return verdict is not None


def noise(step: int) -> float:
    """0.10 and 0.08 in turn, so that the start, the median of the first five, is 0.10."""
    return 0.10 if step % 2 else 0.08


# By hand: the limit is 0.95 times the smaller of 0.10 and the first held-out loss.
HELD_OUT: dict[str, tuple[Sequence[float], int, bool]] = {
    "falls": ([0.062, 0.064, 0.058, 0.055], 20, False),  # twice below 0.0589
    "falls, at the limit": ([0.0625, 0.059375, 0.059375], 20, False),
    "falls, not by a twentieth": ([0.062, 0.0591, 0.0591], 20, True),
    "falls and comes back": ([0.062, 0.055, 0.055, 0.07], 20, False),  # it has learned once
    "falls every other time": ([0.062, *[0.055, 0.062] * 5, 0.062], 20, True),
    "lies lower from the first": ([0.05, 0.05], 20, True),
    "rises": ([0.10, 0.11, 0.12, 0.14], 20, True),
    "begins far above the start": ([9.0, 0.096, 0.096], 20, True),
    "begins far above and falls below": ([9.0, 0.096, 0.094, 0.094], 20, False),
    "is not finite": ([0.062, math.nan, math.inf, math.nan], 20, True),
    "three measurements": ([0.10, 0.08, 0.08], 60, False),
    "two measurements": ([0.10, 0.05], 100, True),
    "one measurement": ([0.05], 200, True),
    "below zero": ([-0.40, -0.43, -0.43], 20, False),  # -0.40 - 0.02
    "below zero, by less": ([-0.40, -0.41, -0.41], 20, True),
}


@pytest.mark.parametrize("name", HELD_OUT)
@pytest.mark.parametrize("factor", [1e-6, 1.0, 4e5])
def test_noisy_batches_do_not_hide_what_the_held_out_loss_shows_in_any_unit(name: str, factor: float) -> None:
    held_out, every, judged = HELD_OUT[name]
    assert never_learned(judge(measured(noise, held_out, every, factor), vocabulary=None)) == judged


@pytest.mark.parametrize(
    ("start", "held_out", "judged"),
    [
        (CAP, [5.39], False),  # 5.545 - 0.15 = 5.395
        (CAP, [5.40], True),
        (7.0, [5.39], False),
        (CAP, [2.0, *[5.5, 5.39] * 6], True),  # never twice in a row
        (4.0, [3.5, 3.34, 3.34], False),  # 3.5 - 0.15: the held-out text may be easier from the first
        (4.0, [3.5, 3.36, 3.36], True),
        (4.0, [4.5, 3.84, 3.84], False),
        (4.0, [4.5, 3.86, 3.86], True),
    ],
)
def test_a_cross_entropy_on_held_out_batches_is_measured_from_uniform(
    start: float, held_out: Sequence[float], judged: bool
) -> None:
    assert never_learned(judge(measured(lambda step: start, held_out))) == judged
    given = CONFIG.altered(start_from="weights.pt")
    assert never_learned(judge(measured(lambda step: CAP, held_out), given)) == (
        min(held_out[-2:]) > 5.395 or 5.5 in held_out
    )


def at(level: float) -> Curve:
    return lambda step: level + (CAP - level) * 0.5 ** (step / 4)


@pytest.mark.parametrize(("steps", "level", "at_step"), [(500, 3.06, 300), (500, 3.04, None), (1000, 3.06, 600)])
def test_a_model_that_knows_the_frequencies_alone_is_judged_after_its_share(
    steps: int, level: float, at_step: int | None
) -> None:
    config = CONFIG.altered(max_steps=steps)
    verdict = judge(records(at(level), steps), config, unigram_entropy=ENTROPY)
    assert (verdict and (verdict.rule, verdict.step, verdict.metric)) == (at_step and ("no_context", at_step, "loss"))
    if verdict is not None:
        assert (verdict.value, verdict.limit) == (pytest.approx(level, abs=1e-3), pytest.approx(3.05))
        assert "the frequencies of the tokens alone give 3.200" in verdict.detail


def test_a_loss_that_is_still_falling_is_judged_a_hundred_steps_after_its_last_tenth_of_a_nat() -> None:
    """The average goes from 3.5 at step 250 to 3.2 with the half-life of 10: below 3.4 after 6 steps, at 3.398, and
    below 3.298 after 17; 3.192 it never reaches.  In a run of 1,000 steps a tick is two steps."""
    for stretch in (1, 2):
        rows = records(lambda step, k=stretch: 3.5 if step <= 250 * k else 3.2, 500 * stretch)
        config = CONFIG.altered(max_steps=500 * stretch, never_learned_fraction=1.0)
        found = judge(rows, config, unigram_entropy=ENTROPY)
        assert found is not None and found.rule == "no_context" and found.step == pytest.approx(367 * stretch, abs=2)
    slow = records(lambda step: 4.8 - 0.0033 * step)  # 0.33 nats in 100 steps, 3.15 at the end
    assert judge(slow, unigram_entropy=ENTROPY) is None
    slower = records(lambda step: 3.5 - 0.0008 * step)  # 0.08 nats in 100 steps, 3.26 at step 300
    verdict = judge(slower, CONFIG.altered(never_learned_fraction=1.0), unigram_entropy=ENTROPY)
    assert verdict is not None and verdict.rule == "no_context"


@pytest.mark.parametrize(
    ("told", "judged"),
    [
        ({}, True),
        ({"unigram_entropy": None}, False),
        ({"vocabulary": None}, False),
        ({"config": CONFIG.altered(start_from="weights.pt")}, False),
        ({"config": CONFIG.altered(warmup_steps=430)}, True),  # from step 480 on
        ({"config": CONFIG.altered(warmup_steps=460)}, False),  # from step 510 on
        ({"config": CONFIG.altered(never_learned_margin=0.05)}, False),  # the limit is 3.15
        ({"rows": measured(at(3.1), [3.06])}, True),
        ({"rows": measured(at(3.1), [3.2, 3.04, 3.2])}, False),  # the held-out loss shows context
        ({"rows": records(at(0.25)), "unigram_entropy": 0.29}, False),  # tokens that are nearly always the same
        ({"rows": records(at(0.25)), "unigram_entropy": 0.31}, True),
    ],
)
def test_what_the_rule_needs_and_what_excuses_a_run(told: dict[str, Any], judged: bool) -> None:
    verdict = judge(**{"rows": records(at(3.1)), "unigram_entropy": ENTROPY, **told})
    assert verdict is None or verdict.rule == "no_context"
    assert (verdict is not None) == judged


@pytest.mark.parametrize("name", HEALTHY_CURVES)
def test_a_healthy_or_slow_run_is_not_said_to_have_learned_no_context(name: str) -> None:
    verdict = judge(records(HEALTHY_CURVES[name]), unigram_entropy=ENTROPY)
    if name == "plateau_then_drop":  # at 3.34 nats from step 40 to step 400: later than the share
        assert verdict is not None and verdict.rule == "no_context"
        assert judge(records(HEALTHY_CURVES[name]), CONFIG.altered(no_context_fraction=1.0), 256, ENTROPY) is None
    else:
        assert verdict is None


@pytest.mark.parametrize(
    "rows",
    [
        measured(noise, [0.062, 0.055, 0.062, 0.055, 0.055]),
        measured(noise, [0.062, 0.061]),
        records(lambda step: CAP if step <= 5 else 3.5 if step <= 250 else 3.2),
        measured(at(3.1), [3.06]),
    ],
)
@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_a_detector_restored_at_any_step_has_learned_as_much(rows: list[Record], vocabulary: int | None) -> None:
    straight, relayed = (CollapseDetector(CONFIG, vocabulary, ENTROPY) for _ in range(2))
    for row in rows:
        state = json.loads(json.dumps(relayed.state_dict(), allow_nan=False))
        relayed = CollapseDetector(CONFIG, vocabulary, ENTROPY)
        relayed.load_state_dict(state)
        assert relayed.update(row) == straight.update(row)
        assert json.dumps(relayed.state_dict()) == json.dumps(straight.state_dict())


def test_states_from_before_both_questions_are_read() -> None:
    older = CollapseDetector(CONFIG, VOCABULARY).state_dict()
    older["rules"]["never_learned"] = {}
    del older["rules"]["no_context"]
    restored = CollapseDetector(CONFIG, VOCABULARY, ENTROPY)
    restored.load_state_dict(older)
    assert restored.state_dict() == CollapseDetector(CONFIG, VOCABULARY).state_dict()


@pytest.mark.long
def test_the_recorded_sweeps_keep_their_verdicts(tmp_path: Path) -> None:
    """Their text has 3.16 nats; replayed with the gaps that their rows have."""
    told = 0
    for file in sorted(recorded_sweeps(tmp_path).rglob("run.json")):
        run = read_run(Folder.at(file.parent))
        known = {name: value for name, value in run.config.items() if name in TrainConfig.model_fields}
        detector = CollapseDetector(TrainConfig(**known), run.info["vocabulary"], 3.16)
        for row in run.table("steps").to_pylist():
            detector.update({name: value for name, value in row.items() if isinstance(value, float | int)})
        found, expected = detector.verdict, run.verdict
        assert (found and (found.rule, found.step)) == (expected and (expected.rule, expected.step)), run.name
        told += expected is not None
    assert told == 6


@pytest.mark.parametrize(("act", "step"), [(150, 300), (250, 350), (300, 400), (350, 300)])
def test_after_a_rescue_a_run_without_context_has_a_hundred_steps(act: int, step: int) -> None:
    rows = [row | ({"rescue_acts": 1.0} if row["step"] == act else {}) for row in records(at(3.1))]
    verdict = judge(rows, unigram_entropy=ENTROPY)
    assert verdict is not None and (verdict.rule, verdict.step) == ("no_context", step)


def test_held_out_losses_from_before_a_rescue_are_not_in_a_row_with_later_ones() -> None:
    """Low at step 120, and again at 140; the deadline is 200."""
    rows = measured(noise, [0.062] * 5 + [0.055, 0.055, 0.062])
    assert judge(rows, vocabulary=None) is None
    rescued = [row | ({"rescue_acts": 1.0} if row["step"] == 130 else {}) for row in rows]
    assert never_learned(judge(rescued, vocabulary=None))
