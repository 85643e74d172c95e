"""What the arms show, by rule: a cause is named only by an arm that prevents the collapse and a control that does not.

An arm prevents it if no rule judges it and it leaves at most a quarter of the harm (see `harm`).

The rules, in this order; the first that applies gives the kind:

    not_reproduced   the unchanged replay did not repeat the verdict bit for bit: nothing else counts
    data, chance     it comes back on none of the other batches, or not with other random numbers of rounding
    weights_at_rest  FP32 master weights prevent it
    operands         healing one cell, or a few together, prevents it; no smaller set does
    spread           healing operands in many layers prevents it; no small set does
    setting          scales from the current amax, or a forgotten history, prevent it
    rate             half the learning rate prevents it
    nothing          nothing that was tried prevents it
    undecided        the budget ended, or arms failed, before a rule could apply

Confidence is high if every replay on other batches agrees (at least three, the first included), everything else healed
together does not prevent the collapse, and no control of equal cost does.  It is medium if no replay and no control
contradicts, and low otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from altgrad.explain.arm import (
    ALL,
    COMPLEMENT,
    CONTROL,
    HISTORY,
    MASTER,
    RATE,
    SCALING,
    SEED,
    WRITE_BACK,
    ArmResult,
    Results,
    by_name,
    name_of_control,
)
from altgrad.explain.arms import Case, found_guilty, next_arms, searched
from altgrad.explain.cells import Cells, describe
from altgrad.explain.harm import judged

CauseRule = Literal[
    "not_reproduced",
    "data",
    "chance",
    "weights_at_rest",
    "operands",
    "spread",
    "setting",
    "rate",
    "nothing",
    "undecided",
]
Confidence = Literal["high", "medium", "low"]
_ALSO: Mapping[str, str] = {
    WRITE_BACK: "a stochastic write-back",
    SCALING: "scales from the current amax",
    HISTORY: "a forgotten amax history",
    RATE: "half the learning rate",
}
_FOR_HIGH = 3  # replays


@dataclass(frozen=True)
class Conclusion:
    """What was shown.  `cells`: what is to blame, if operands are; `worked`: names of the arms that prevented it."""

    rule: CauseRule
    sentence: str
    confidence: Confidence
    cells: Cells = frozenset()
    worked: tuple[str, ...] = ()


def conclude(case: Case, results: Results) -> Conclusion:
    """The conclusion from the results so far."""
    results = judged(results)
    known = by_name(results)
    control = known.get(CONTROL)
    if control is None:
        return Conclusion("undecided", "The unchanged replay was not run.", "low")
    if not control.repeats:
        said = control.error or ("it failed" if control.prevented is None else "its numbers or its verdict differ")
        sentence = f"The unchanged replay does not repeat the run bit for bit ({said}), so no arm shows a cause."
        return Conclusion("not_reproduced", sentence, "low")
    worked = tuple(arm.name for arm, result in results.items() if result.prevented and arm.name != CONTROL)
    rule, sentence, cells = _rule(case, results, known)
    counted = _replays(results, cells) if cells else (0, 0)
    against = [name for name in (SEED, RATE) if _prevented(known, name) and name != rule]
    confidence = _confidence(rule, known, counted, bool(against or _other_orders(case, known)[0]))
    if counted[1]:
        sentence = sentence.replace("the collapse", f"the collapse ({counted[0]} of {counted[1]} replays)", 1)
    also = [words for name, words in _ALSO.items() if name in worked and words not in sentence.lower()]
    if rule not in ("data", "chance", "undecided") and also:
        sentence += f"; also prevented by {' and by '.join(also)}"
    return Conclusion(rule, f"{sentence}.", confidence, cells, worked)


def _rule(case: Case, results: Results, known: Mapping[str, ArmResult]) -> tuple[CauseRule, str, Cells]:
    """(rule, sentence without its end, guilty cells)."""
    nothing: Cells = frozenset()
    passed, tried = _other_orders(case, known)
    if passed and passed == tried:
        where = "On other batches" if tried == 1 else f"On {tried} of {tried} series of other batches"
        return "data", f"{where} the run does not collapse, so no arm shows more than chance would", nothing
    if _prevented(known, SEED):
        said = "With other random numbers of rounding the run does not collapse, so no arm shows more than chance would"
        return "chance", said, nothing
    if _prevented(known, MASTER):
        return "weights_at_rest", "FP32 master weights alone prevent the collapse", nothing
    guilty = found_guilty(case, results)
    if guilty is not None and guilty.cells:
        what = describe(guilty.cells, case.cells)
        complement = known.get(COMPLEMENT)
        if not guilty.smallest:
            return "spread", f"Healing {what} prevents the collapse, and no small part of it does", guilty.cells
        how = "alone" if len(guilty.cells) == 1 else "together"
        sentence = f"Healing {what} {how} prevents the collapse"
        if complement is not None and complement.prevented is False:
            sentence += "; healing everything else does not"
        elif complement is not None and complement.prevented:
            sentence += "; healing everything else does too"
        if passed:
            sentence += f"; on {passed} of {tried} series of other batches it does not come back"
        return "operands", sentence, guilty.cells
    for name in (SCALING, HISTORY):
        if _prevented(known, name):
            words = _ALSO[name]
            verb = "prevents" if name == HISTORY else "prevent"
            return "setting", f"{words[0].upper()}{words[1:]} {verb} the collapse", nothing
    if _prevented(known, RATE):
        return "rate", "Half the learning rate prevents the collapse", nothing
    if next_arms(case, results) or any(result.prevented is None for result in known.values()):
        smallest = min((cells for cells, prevented in searched(results).items() if prevented), key=len, default=nothing)
        if smallest:
            what = describe(smallest, case.cells)
            return "undecided", f"Healing {what} prevents the collapse; smaller sets were not all tried", smallest
        return "undecided", "No arm prevented the collapse so far; not all were run", nothing
    healed = "neither all operands in BF16 nor" if ALL in known else "no"
    return "nothing", f"Nothing that was tried prevents the collapse: {healed} another setting", nothing


def _other_orders(case: Case, known: Mapping[str, ArmResult]) -> tuple[int, int]:
    """(series of other batches on which the unchanged replay does not collapse, series that were tried)."""
    found = [known[name].prevented for name in map(name_of_control, case.other_orders) if name in known]
    return found.count(True), len(found)


def _replays(results: Results, cells: Cells) -> tuple[int, int]:
    """(replays that healing the cells prevented while their control collapsed, replays)."""
    controls = {arm.replay: result for arm, result in results.items() if arm.name == name_of_control(arm.replay)}
    shown = [
        result.prevented
        for arm, result in results.items()
        if arm.kind == "heal" and arm.cells == cells and result.prevented is not None
        if arm.replay in controls and controls[arm.replay].prevented is False
    ]
    return sum(map(bool, shown)), len(shown)


def _confidence(rule: CauseRule, known: Mapping[str, ArmResult], counted: tuple[int, int], against: bool) -> Confidence:
    """against: whether a control of equal cost prevents the collapse too."""
    if rule in ("data", "chance", "undecided"):
        return "low"
    agreed, tried = counted
    if rule == "nothing":
        return "medium"
    if rule in ("operands", "spread"):
        complement = known.get(COMPLEMENT)
        alone = complement is not None and complement.prevented is False
        if agreed < tried or against or (complement is not None and complement.prevented):
            return "low"
        return "high" if agreed >= _FOR_HIGH and alone and RATE in known else "medium"
    return "low" if against else "medium"


def _prevented(known: Mapping[str, ArmResult], name: str) -> bool:
    return name in known and bool(known[name].prevented)
