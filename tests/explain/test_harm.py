"""A verdict that fails to come by a hair proves nothing: what an arm leaves of the harm, on its own and other data.

The losses are made up after three collapses of the study of planted faults, in which an arm or other batches escaped
the verdict while the fault went on to do harm.
"""

from __future__ import annotations

import math

import pytest

from altgrad.config.train_config import TrainConfig
from altgrad.explain import Arm, ArmResult, Case, Conclusion, conclude, next_arms
from altgrad.explain.arm import ALL, BATCHES, CONTROL, RATE, name_on
from altgrad.explain.harm import harm_left, judged

LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6")
CASE = Case(TrainConfig(format="E4M3", model="micro"), LAYERS, start=0, until=90)
GUILTY = next(cell for cell in CASE.cells if str(cell) == "wgrad.gradient of layers.6")
BAD, GOOD, VERDICT = 0.17, 0.03, 60  # losses unchanged and healed, step of the verdict


def explained(
    case: Case, escapes: dict[str, float], on_others: dict[int, float], good: float = GOOD
) -> tuple[dict[Arm, ArmResult], Conclusion]:
    """The explanation of a run in which `GUILTY` alone does harm.

    escapes: label of an arm that no rule judges although the fault is there -> its loss.  on_others: other batches that
    no rule judges unchanged -> the loss there.
    """
    results: dict[Arm, ArmResult] = {}
    while (arm := next(iter(next_arms(case, results)), None)) is not None:
        if GUILTY in arm.cells:
            results[arm] = ArmResult(True, loss=good + arm.replay / 1000, loss_step=VERDICT)
        elif arm.label in escapes:
            results[arm] = ArmResult(True, loss=escapes[arm.label], loss_step=VERDICT)
        elif arm.replay in on_others and not arm.cells:
            results[arm] = ArmResult(True, loss=on_others[arm.replay], loss_step=VERDICT)
        else:
            results[arm] = ArmResult(False, arm.name == CONTROL, None, BAD, VERDICT)
    return results, conclude(case, results)


def names(results: dict[Arm, ArmResult]) -> list[str]:
    return [arm.name for arm in results]


def test_other_batches_that_no_rule_judges_are_no_cause_if_healing_helps_there_as_much():
    results, found = explained(CASE, {}, {1: 0.147, 2: 0.147})
    assert found.cells == {GUILTY} and found.rule == "operands" and found.confidence == "high"
    assert "(3 of 3 replays)" in found.sentence and "does not come back" not in found.sentence
    assert {name_on(ALL, 1), name_on(ALL, 2)} <= set(names(results)) and BATCHES not in found.worked
    assert sum(arm.kind == "heal" and not arm.replay for arm in results) + 1 <= 8  # of the search, with the control


def test_the_data_are_the_cause_if_on_no_other_batches_healing_helps():
    results, found = explained(CASE, {}, {1: 0.036, 2: 0.040})
    assert found.rule == "data" and not found.cells and found.confidence == "low"
    assert found.sentence.startswith("On 2 of 2 series of other batches the run does not collapse")
    assert {name_on(ALL, 1), name_on(ALL, 2)} <= set(names(results))
    _, found = explained(CASE, {}, {1: 0.036})
    assert found.cells == {GUILTY} and found.confidence == "low"
    assert "(2 of 2 replays)" in found.sentence
    assert found.sentence.endswith("; on 1 of 2 series of other batches it does not come back.")
    one = Case(CASE.config, LAYERS, 0, 90, replays=1)
    assert explained(one, {}, {1: 0.036})[1].rule == "data" and explained(one, {}, {1: 0.09})[1].cells == {GUILTY}


def test_a_replay_that_escapes_the_verdict_with_most_of_the_harm_leads_the_search_nowhere():
    lucky = {"dgrad.gradient in all layers in BF16": 0.154}
    results, found = explained(CASE, lucky, {})
    assert lucky.keys() <= {arm.label for arm in results} and found.cells == {GUILTY}
    left = {arm.label: share for arm, share in harm_left(results).items()}
    assert left["dgrad.gradient in all layers in BF16"] == pytest.approx((0.154 - GOOD) / (BAD - GOOD))
    assert not judged(results)[next(arm for arm in results if arm.label in lucky)].prevented
    halved = {"half the learning rate": 0.15}
    _, found = explained(CASE, halved, {})
    assert RATE not in found.worked and "half the learning rate" not in found.sentence and found.confidence == "high"
    _, found = explained(CASE, {"half the learning rate": 0.05}, {})
    assert "also prevented by half the learning rate" in found.sentence and found.confidence == "low"


def test_where_the_loss_shows_no_harm_the_verdict_alone_counts():
    for good, measured in ((BAD, False), (0.165, False), (0.155, True)):
        results, found = explained(CASE, {}, {1: 0.169, 2: 0.169}, good)
        assert bool(harm_left(results)) is measured and found.rule == ("operands" if measured else "data")


UNLIKE = [
    None, ArmResult(False), ArmResult(True), ArmResult(True, loss=0.03, loss_step=59),
    ArmResult(True, loss=0.2, loss_step=60), ArmResult(True, loss=math.nan, loss_step=60),
]  # fmt: skip


@pytest.mark.parametrize("reference", UNLIKE)
def test_without_a_comparable_reference_no_harm_is_measured(reference):
    results = {
        CASE.control(): ArmResult(False, True, None, 0.17, 60),
        CASE.control(1): ArmResult(True, loss=0.17, loss_step=60),
    }
    if reference is not None:
        results[CASE.heal(CASE.everything)] = reference
    assert not harm_left(results) and judged(results) == results
