"""The logic of an explanation on made-up truths: each cell guilty alone, pairs, none, all, controls that disagree."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from altgrad.config.operands import ALL_OPERANDS, roundings
from altgrad.config.train_config import TrainConfig
from altgrad.explain import Arm, ArmResult, Case, Conclusion, conclude, next_arms
from altgrad.explain.arm import BATCHES, COMPLEMENT, CONTROL, MASTER, RATE, SCALING, SEED, name_of_control
from altgrad.explain.cells import Cell, Cells, healing

LAYERS = ("h.0.attn.qkv", "h.0.attn.proj", "h.0.mlp.up", "h.0.mlp.down")
CASE = Case(TrainConfig(format="E4M3", model="micro"), LAYERS, start=100, until=300)
CELLS = CASE.cells
NAMING = math.floor(math.log2(len(CELLS))) + 4  # replays with which a single guilty cell must be named

BATCHES_2 = name_of_control(2)
Truth = Callable[[Cells], bool]


def played(
    case: Case, prevents: Truth, others: Mapping[str, bool] | None = None, budget: int = 99
) -> tuple[dict[Arm, ArmResult], Conclusion, int]:
    """(results, conclusion, the number of arms of the search and its control, until it was over)."""
    results: dict[Arm, ArmResult] = {}
    others = others or {}
    while (wanted := next_arms(case, results)) and len(results) < budget:
        arm = wanted[0]
        if arm.name == CONTROL:
            results[arm] = ArmResult(False, repeats=True)
        elif arm.kind in ("heal", "complement"):
            results[arm] = ArmResult(prevents(arm.cells))
        else:
            results[arm] = ArmResult(others.get(arm.name, False))
    search = sum(arm.kind == "heal" and not arm.replay for arm in results) + 1
    return results, conclude(case, results), search


@pytest.mark.parametrize("guilty", CELLS, ids=str)
def test_each_of_24_cells_is_named_with_few_replays(guilty):
    results, found, search = played(CASE, lambda healed: guilty in healed)
    assert found.rule == "operands" and found.cells == {guilty} and found.confidence == "high"
    assert f"{guilty} alone prevents the collapse (3 of 3 replays); healing everything else does not" in found.sentence
    assert search <= NAMING == 8
    assert [arm.name for arm in results].count(COMPLEMENT) == 1


def test_two_cells_that_are_needed_together_are_both_named_and_no_third():
    most = 0
    for pair in map(frozenset, itertools.combinations(CELLS, 2)):
        _, found, search = played(CASE, lambda healed, pair=pair: pair <= healed)
        assert found.rule == "operands" and found.cells == pair and "together" in found.sentence, pair
        most = max(most, search)
    assert most <= 24


def test_either_of_two_cells_is_no_sure_cause():
    for one, other in itertools.combinations(CELLS, 2):
        _, found, _ = played(CASE, lambda healed, two=frozenset((one, other)): bool(two & healed))
        assert len(found.cells) == 1 and found.cells <= {one, other}
        assert "healing everything else does too" in found.sentence and found.confidence == "low"


def test_where_healing_all_operands_does_not_help_none_is_blamed():
    _, found, search = played(CASE, lambda healed: False)
    assert (found.rule, found.cells, search) == ("nothing", frozenset(), 2)
    _, found, _ = played(CASE, lambda healed: False, {RATE: True})
    assert found.rule == "rate" and not found.cells


def test_a_fault_everywhere_is_no_single_cell():
    results, found, _ = played(CASE, lambda healed: len(healed) == len(CELLS))
    assert found.rule == "spread" and "all operands" in found.sentence and len(results) <= 24
    for operand in ALL_OPERANDS:  # needed in all layers
        own = frozenset(cell for cell in CELLS if cell.operand == operand)
        _, found, _ = played(CASE, lambda healed, own=own: own <= healed)
        assert found.rule == "spread" and found.cells == own and "in all layers" in found.sentence


def test_a_budget_that_ends_early_blames_nothing_smaller_than_was_tried():
    guilty = CELLS[13]
    for budget in range(1, 9):
        results, found, _ = played(CASE, lambda healed: guilty in healed, budget=budget)
        tried = {arm.cells for arm, result in results.items() if result.prevented}
        assert not found.cells or found.cells in tried
        assert not found.cells or guilty in found.cells


@pytest.mark.parametrize(
    ("others", "rule", "confidence"),
    [
        ({BATCHES: True, BATCHES_2: True}, "data", "low"),
        ({BATCHES: True}, "operands", "low"),
        ({RATE: True}, "operands", "low"),
        ({SCALING: True}, "operands", "high"),
    ],
)
def test_a_control_that_does_not_collapse_either_takes_the_confidence(others, rule, confidence):
    case = Case(TrainConfig(format="E4M3", model="micro", scaling="delayed"), LAYERS, 100, 300)
    _, found, _ = played(case, lambda healed: CELLS[5] in healed, others)
    assert (found.rule, found.confidence) == (rule, confidence)


def test_no_cause_without_its_control():
    control = CASE.control()
    for unlike in (ArmResult(False, repeats=False), ArmResult(True, repeats=False), ArmResult(None)):
        assert next_arms(CASE, {control: unlike}) == []
        assert conclude(CASE, {control: unlike}).rule == "not_reproduced"
    arm = CASE.heal(frozenset(CELLS[:1]))
    assert conclude(CASE, {arm: ArmResult(True)}).rule == "undecided"


def test_a_replay_on_other_batches_counts_only_if_its_control_collapses_there():
    guilty = frozenset(CELLS[:1])
    results, _, _ = played(CASE, lambda healed: guilty <= healed)
    second = CASE.control(2)
    found = conclude(CASE, {**results, second: ArmResult(True)})
    assert "(2 of 2 replays)" in found.sentence and found.confidence == "low"
    assert found.sentence.endswith("; on 1 of 2 series of other batches it does not come back.")
    worse = CASE.heal(guilty, 2)
    found = conclude(CASE, {**results, worse: ArmResult(False)})
    assert "(2 of 3 replays)" in found.sentence and found.confidence == "low"


def test_later_replays_have_other_batches_and_where_numbers_are_drawn_other_numbers_too():
    drawn = Case(TrainConfig(format="E4M3", model="micro", rounding="stochastic", seed=3), LAYERS, 100, 300)
    assert [case.other_batches(2) for case in (CASE, drawn)] == [
        {"skip_batches": 600}, {"skip_batches": 600, "rounding_seed": 5}
    ]  # fmt: skip
    assert CASE.other_batches(1) == drawn.other_batches(1) == {"skip_batches": 300} and not drawn.other_batches(0)
    for case in (CASE, drawn):  # a replay and its control differ in what is healed alone
        healed, control = case.heal(frozenset(CELLS[:1]), 2), case.control(2)
        assert {k: v for k, v in healed.changes.items() if k in control.changes} == control.changes
    assert [arm.changes for arm in drawn.settings if arm.name == SEED] == [{"rounding_seed": 4}]
    assert not [arm for arm in CASE.settings if arm.name == SEED]


def test_weights_at_rest_are_tried_before_single_operands():
    case = Case(TrainConfig(format="E7M0", model="micro", master_weights=False), LAYERS, 0, 300)
    results, found, _ = played(case, lambda healed: True, {MASTER: True})
    assert found.rule == "weights_at_rest" and not any(len(arm.cells) == 1 for arm in results)


def test_an_arm_that_fails_ends_the_search_without_a_cause():
    results: dict[Arm, ArmResult] = {CASE.control(): ArmResult(False, repeats=True)}
    for _ in range(20):
        wanted = next_arms(CASE, results)
        if not wanted:
            break
        results[wanted[0]] = ArmResult(None if wanted[0].kind == "heal" else False)
    assert next_arms(CASE, results) == [] and conclude(CASE, results).rule == "undecided"


def test_healing_changes_the_casts_of_these_cells_and_no_other():
    rng = random.Random(1)
    bases: list[dict[str, Any]] = [
        {},
        {"scaling": "delayed", "gradient_format": "E5M2", "rounding": "stochastic"},
        {"recipe": "mxfp4_rht_sr"},
        {"layer_formats": {"h.0.mlp.*": "E5M2"}, "layer_gemms": {"*": {"dgrad": {"format": "E2M1"}}}},
    ]
    for base in bases:
        config = TrainConfig(**({"format": "E4M3"} if "recipe" not in base else {}), model="micro", **base)
        every = Case(config, LAYERS, 0, 10).cells
        for size in (1, 2, 5, len(every)):
            cells = frozenset(rng.sample(every, min(size, len(every))))
            once = config.altered(**healing(config, cells, LAYERS))
            twice = once.altered(**healing(once, cells, LAYERS))
            for changed in (once, twice):
                for layer in LAYERS:
                    for operand, cast in changed.casts_at(layer).items():
                        healed = Cell(layer, *operand) in cells
                        before = config.casts_at(layer)[operand]
                        assert cast.format == "BF16" if healed else cast == before
                    assert roundings(changed.casts_at(layer))


@pytest.mark.parametrize(("fields", "tried"), [
    ({"scaling": "delayed"}, True), ({"scaling": "none"}, True), ({"scaling": "dynamic"}, False),
    ({"gemms": {"dgrad": {"gradient": {"scaling": "static", "static_scale": 0.5}}}}, True),
])  # fmt: skip
def test_scales_are_to_blame_wherever_they_do_not_follow_the_current_amax(fields: dict[str, Any], tried: bool) -> None:
    settings = Case(TrainConfig(format="E4M3", model="micro", **fields), LAYERS, 100, 300).settings
    assert (SCALING in [arm.name for arm in settings]) == tried


def test_a_scaled_fp16_operand_is_no_narrower_than_bf16_and_is_not_searched() -> None:
    fields = {"gemms": {"dgrad": {"gradient": {"format": "FP16", "scale_fp16": True}}}}
    cells = Case(TrainConfig(format="E4M3", model="micro", **fields), LAYERS, 0, 10).cells
    assert cells and not [cell for cell in cells if (cell.gemm, cell.site) == ("dgrad", "gradient")]
