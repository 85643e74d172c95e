"""An act that makes a run another one restarts what the rules count: verdicts at steps worked out by hand.

Without an act each curve is judged at the step that `PLAIN` gives.  The first step that counts after an act is the one
after it, so that an act at step a moves the end of a patience of p steps to a + p.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from altgrad.collapse import CollapseDetector
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.outcome import Report
from altgrad.results import Verdict
from altgrad.results.reading.ancestors import records_until
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.results.collapse_curves import CONFIG, Record, judge, records
from tests.support.runs.small_runs import SMALL


def degrading() -> list[Record]:
    """Both losses rise from 2.6 at step 100 to 3.0 at step 180; the held-out one, seen every 20 steps, passes 2.85."""
    rows = records(lambda step: 2.6 + min(0.005 * max(step - 100, 0), 0.4))
    return [row | ({"validation_loss": row["loss"]} if row["step"] % 20 == 0 else {}) for row in rows]


def falling(step: int) -> float:
    return 4 - step / 500


CURVES: dict[str, Callable[[], list[Record]]] = {
    "gap_to_baseline": lambda: records(falling, gap_to_baseline=lambda step: 0.31),  # after the warm-up, 50 steps
    "diverged": lambda: records(lambda step: 2.0 if step <= 150 else 5.0),
    "degraded": degrading,
    "non_finite": lambda: records(lambda step: falling(step) if step <= 100 else math.nan),
    "stalled": lambda: records(lambda step: 2.5, realised_displacement=lambda step: 0.02),
    "rank_collapse": lambda: records(lambda step: 2.5, stable_rank=lambda step: 12.0 if step <= 250 else 1.2),
    "never_learned": lambda: records(lambda step: 5.5),
}
PLAIN = {
    "gap_to_baseline": 110,
    "diverged": 232,  # 2.0 + 3 nats of reach x 0.067 = 2.2 at step 151, 2.39 at 152, above 2.5 from step 153 on
    "degraded": 240,
    "non_finite": 105,
    "stalled": 150,
    "rank_collapse": 350,
    "never_learned": 200,
}


def acted(rows: list[Record], acts: Collection[int], each: float = 1.0) -> list[Record]:
    return [row | ({"rescue_acts": each} if row["step"] in acts else {}) for row in rows]


def verdict_of(rule: str, *acts: int, each: float = 1.0, config: TrainConfig = CONFIG) -> Verdict:
    found = judge(acted(CURVES[rule](), acts, each), config)
    assert found is not None and found.rule == rule, found
    return found


@pytest.mark.parametrize("rule", CURVES)
def test_without_an_act_nothing_is_restarted_nor_by_one_after_the_verdict(rule: str) -> None:
    assert verdict_of(rule).step == PLAIN[rule] == verdict_of(rule, PLAIN[rule] + 1).step


@pytest.mark.parametrize(
    ("rule", "act", "at"),
    [
        ("gap_to_baseline", 80, 140),
        ("gap_to_baseline", 110, 170),  # the act of the step at which the patience ends
        ("gap_to_baseline", 40, 110),  # in the warm-up, which counts for nothing
        ("diverged", 232, 312),
        ("degraded", 200, 300),  # seen again at step 220, the first that counts; at 300 it is the 81st
        ("degraded", 240, 340),
        ("non_finite", 103, 108),
        ("non_finite", 105, 110),
        ("stalled", 100, 250),  # the windows that end at steps 150, 200 and 250 follow the act
        ("stalled", 120, 300),  # the one that ends at step 150 does not
        ("rank_collapse", 310, 400),
        ("rank_collapse", 350, 450),
        ("never_learned", 180, 230),  # as many steps as after the warm-up
        ("never_learned", 100, 200),
    ],
)
def test_the_patience_of_each_rule_begins_with_the_step_after_an_act(rule: str, act: int, at: int) -> None:
    assert verdict_of(rule, act).step == at


def test_the_sentence_says_since_when_it_is_so_and_how_many_steps_count() -> None:
    assert verdict_of("gap_to_baseline", 80).detail == (
        "more than 0.3 nats behind the baseline since step 51, not catching up for 60 steps"
    )
    assert verdict_of("non_finite", 103).detail.endswith("at 5 steps in a row since step 104")
    assert "at 3 measurements in a row since step 150" in verdict_of("stalled", 120).detail


def test_the_share_of_bad_steps_is_that_since_the_act() -> None:
    rows = records(lambda step: math.nan if step % 4 < 3 and step > 20 else falling(step))
    before, after = judge(rows), judge(acted(rows, [79]))
    assert before is not None and before.step < 90
    # known after two half-lives of 40 steps, steps 80 to 159; step 159 is a good one
    assert after is not None and (after.rule, after.step) == ("non_finite", 160)


def test_a_low_rank_must_last_a_twentieth_of_the_run_after_the_act() -> None:
    rows = records(lambda step: 2.5)
    for row in rows[9::10]:
        row["stable_rank"] = 12.0 if row["step"] <= 250 else 1.2
    for acts, at in (((), 290), ((285,), 320)):  # 25 steps after steps 260 and 290, seen every ten
        found = judge(acted(rows, acts))
        assert found is not None and (found.rule, found.step) == ("rank_collapse", at)
        assert f"since step {at - 30}" in found.detail


def test_in_a_long_run_the_patience_after_an_act_is_longer_in_proportion() -> None:
    long = CONFIG.altered(max_steps=1000)
    assert [verdict_of("gap_to_baseline", *acts, config=long).step for acts in ((), (120,))] == [170, 240]
    never = judge(acted(records(lambda step: 5.5, 1000), [380]), long)
    assert never is not None and (never.rule, never.step) == ("never_learned", 480)


def test_a_run_that_is_rescued_for_ever_is_judged_since_only_eight_acts_restart_the_count() -> None:
    forever = range(60, 500, 10)
    assert verdict_of("gap_to_baseline", *forever).step == 130 + 60
    assert verdict_of("gap_to_baseline", *forever, each=2.0).step == 90 + 60  # two acts a step
    assert verdict_of("gap_to_baseline", *range(60, 130, 10)).step == 120 + 60  # seven
    assert verdict_of("gap_to_baseline", *range(60, 130, 10), 179).step == 179 + 60  # and the eighth later


@pytest.mark.parametrize("rule", CURVES)
def test_a_detector_restored_after_any_step_counts_on(rule: str) -> None:
    straight, relayed = CollapseDetector(CONFIG, 256), CollapseDetector(CONFIG, 256)
    for row in acted(CURVES[rule](), range(60, 500, 10)):  # also that eight acts have been
        state = json.loads(json.dumps(relayed.state_dict(), allow_nan=False))
        relayed = CollapseDetector(CONFIG, 256)
        relayed.load_state_dict(state)
        assert repr(relayed.update(row)) == repr(straight.update(row))  # as text NaN equals NaN
    assert straight.verdict is not None and straight.verdict.step >= PLAIN[rule]


def test_a_state_of_a_version_that_knew_no_acts_goes_on() -> None:
    rows = acted(CURVES["gap_to_baseline"](), [80])
    detector = CollapseDetector(CONFIG, 256)
    for row in rows[:60]:
        detector.update(row)
    state = detector.state_dict()
    del state["rescues"], state["rules"]["never_learned"]["since"], state["rules"]["stalled"]["anew"]
    state["rules"]["diverged"]["clock"] = 0  # as it was before the first step beyond the limit
    older = CollapseDetector(CONFIG, 256)
    older.load_state_dict(state)
    for row in rows[60:]:
        older.update(row)
    assert older.verdict is not None and older.verdict.step == 140


def test_a_run_is_judged_from_its_shift_on_also_if_it_is_killed_in_between_and_from_its_rows(tmp_path: Path) -> None:
    """Frozen weights are shifted at step 7; a gap of four nats after two steps of warm-up has a patience of six."""
    frozen = SMALL.altered(
        format="E7M0", master_weights=False, learning_rate=1e-5, diagnostic_interval=3, max_steps=20, gap_patience=6,
        checkpoint_interval=4,
    )  # fmt: skip
    baseline = dict.fromkeys(range(1, 21), 1.0)
    armed = frozen.altered(enable_rescue_ladder=True, rescue_window=4)
    plain = run_format_experiment(frozen, tmp_path / "plain", baseline=baseline)
    whole = run_format_experiment(armed, tmp_path / "whole", baseline=baseline)
    assert plain.verdict is not None and (plain.verdict.rule, plain.verdict.step) == ("gap_to_baseline", 8)
    assert whole.verdict is not None and (whole.verdict.rule, whole.verdict.step) == ("gap_to_baseline", 13)

    def killed(report: Report) -> None:
        if report.step == 9:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        run_format_experiment(armed, tmp_path / "parts", baseline=baseline, report=killed, report_interval=3)
    assert run_format_experiment(armed, tmp_path / "parts", baseline=baseline).verdict == whole.verdict
    rows = {name: records_until(Folder.at(tmp_path / name)) for name in ("plain", "whole", "parts")}
    assert [row["step"] for row in rows["whole"] if "rescue_acts" in row] == [7]
    assert not [row for row in rows["plain"] if "rescue_acts" in row]
    assert [row["loss"] for row in rows["parts"]] == [row["loss"] for row in rows["whole"]]
    again = judge(rows["parts"], armed)
    assert again is not None and again == whole.verdict
