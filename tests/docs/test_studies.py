"""Studies: their pages say what their numbers say, and the effects in them are those that were put in."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altgrad.explain.cells import Cell
from bench.studies import explain_record, rescue
from bench.studies.explain_record import Outcome, Recorded, summary
from bench.studies.trained_studies import gemm_arms, gemm_effects, page

FOLDER = Path(__file__).parents[2] / "docs" / "results"
PAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "study_explain": lambda record: explain_record.page(record, [Outcome.read(one) for one in record["outcomes"]]),
    "study_rescue": lambda record: rescue.page(record, record["runs"]),
}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("study_*.json")), ids=lambda file: file.stem)
def test_a_page_is_what_its_numbers_make(file: Path) -> None:
    record = json.loads(file.read_text())
    made = PAGES.get(file.stem, lambda record: page(record, record.pop("validation_loss")))(record)
    assert file.with_suffix(".md").read_text() == made
    assert f"({file.stem}.md)" in (FOLDER / "index.md").read_text()


def test_every_share_in_the_list_of_studies_stands_on_the_page_that_it_is_from() -> None:
    entries = (FOLDER / "index.md").read_text().split("\n- [")[1:]
    shares = {re.findall(r"\((\w+\.md)\)", one)[0]: re.findall(r"\d+ of \d+", " ".join(one.split())) for one in entries}
    assert shares["detectors.md"] and shares["study_explain.md"]
    for page_name, said in shares.items():
        assert [one for one in said if one not in (FOLDER / page_name).read_text()] == [], page_name


CELL, OTHER = Cell("a", "wgrad", "gradient"), Cell("a", "dgrad", "gradient")


def outcomes() -> list[Outcome]:
    """Ten plants, of which eight are named, one is missed and one too late; one that trained on; two others."""
    named = [Outcome("bias", n, "bias", CELL, "operands", (CELL,), 8, 12) for n in range(1, 9)]
    missed = Outcome("bias", 9, "bias", CELL, "operands", (CELL, OTHER), 7, 12)
    late = Outcome("bias", 10, "bias", CELL, "operands", (CELL,), 9, 12)
    trained_on = Outcome("bias", 11, "bias", CELL, "healthy")
    blamed = Outcome("other", 2, "rate", None, "operands", (CELL,), 6, 9)
    return [*named, missed, late, trained_on, Outcome("other", 1, "healthy", None, "healthy"), blamed]


def test_what_is_named_in_time_and_what_is_blamed_falsely_is_counted() -> None:
    said = "\n".join(summary(outcomes()))
    assert "Plants that collapsed: 10; 1 more trained on" in said
    assert "at most 8 replays of the search: 8 of 10 (80%, 49% to 94%)" in said  # Wilson, as in any table of it
    assert "healthy or globally bad run: 1 of 2" in said and "alone or among others): 2 of 12 (17%" in said
    every = explain_record.page({"command": "c", "date": "d", "machine": {"processor": "p", "torch": "t"}}, outcomes())
    assert "| planted: bias | 10 | 8 | operands 10 | 1 |" in every


def test_an_interrupted_study_goes_on_with_what_it_has_and_refuses_other_settings(tmp_path: Path) -> None:
    first = Recorded(tmp_path, "command", {"seed": 1})
    for one in outcomes():
        first.take(one)
    again = Recorded(tmp_path, "command", {"seed": 1})
    assert sorted(map(repr, again.outcomes)) == sorted(map(repr, outcomes()))
    assert again.has("bias", 11) and not again.has("bias", 12)
    assert again.counted("bias", 11) == 10 and again.counted("bias", 20) == 19
    with pytest.raises(ValueError, match="holds outcomes of other settings"):
        Recorded(tmp_path, "command", {"seed": 2})


def test_an_act_is_done_again_at_the_step_that_was_drawn() -> None:
    config = rescue.FAULTS["E0M7 unscaled"].config(1, 8)
    baseline = dict.fromkeys(range(1, 9), 5.0)
    armed = config.altered(enable_rescue_ladder=True)
    seen = rescue.trained(armed, rescue.nothing, baseline)
    assert seen.acts == (rescue.Act("shift", "BF16"),) and seen.share == 1.0
    again = rescue.trained(armed, rescue.nothing, baseline, {1: [rescue.Act("shift", "BF16")]})
    later = rescue.trained(armed, rescue.nothing, baseline, {5: [rescue.Act("shift", "BF16")]})
    never = rescue.trained(armed, rescue.nothing, baseline, {})
    assert again.gap == seen.gap and later.gap != seen.gap and later.gap != never.gap
    assert not never.acts and len(later.acts) == 1
    cut = rescue.trained(armed, rescue.nothing, baseline, {3: [rescue.Act("rate")], 4: [rescue.Act("skip")]})
    # 1, 1, a tenth, left out, then back over 25 steps
    assert cut.share == pytest.approx((2 + 0.1 + 0 + sum(0.1 + 0.9 * k / 25 for k in (2, 3, 4, 5))) / 8)


def test_a_run_without_a_verdict_that_is_far_behind_is_open_and_not_saved() -> None:
    usual = {"fault": "f", "rung": "none", "what": "acts", "acts": [], "share": 1.0, "step": 9, "processor": "p"}
    ends = ((None, 0.1), (None, 0.3), (None, 0.31), (None, 0.5), (None, None), ("diverged", 0.1))
    rows = [usual | {"seed": n, "verdict": verdict, "gap": gap} for n, (verdict, gap) in enumerate(ends)]
    head = {"command": "c", "date": "d", "machine": {"torch": "t"}}
    said = rescue.page(head, rows)
    assert "| f | 2 of 6 (+0.20, -1.07 to +1.47), 3 open (+0.31 to +0.50) |" in said  # 0.2 +- 12.7 x 0.1
    assert "| f | 0 of 1, 1 open (no gap) |" in rescue.page(head, rows[4:5]) and "`c`, d, p, torch t." in said
    assert "p (5 runs) and q (1 runs)" in rescue.page(head, [*rows[:5], rows[5] | {"processor": "q"}])


def test_only_runs_that_are_not_known_are_trained_and_the_controls_of_one_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    def trained(config: Any, plant: Any, baseline: Any, acts: Any = None) -> rescue.Outcome:
        made.append(acts)
        return rescue.Outcome("diverged", 5, 1.0, (rescue.Act("rate"), rescue.Act("rollback")), 0.5)

    monkeypatch.setattr(rescue, "trained", trained)
    monkeypatch.setattr(rescue.Fault, "baseline", lambda *_: {1: 1.0})
    fault = "explosion (rate x 32)"
    every = dict(rescue.arms(fault, 1, 8, {}))
    assert len(made) == len(every) == 1 + 3 * len(rescue.RUNGS)
    made.clear()
    assert dict(rescue.arms(fault, 1, 8, every)) == every and not made
    without = {arm: outcome for arm, outcome in every.items() if arm != ("rollback", "acts")}
    assert dict(rescue.arms(fault, 1, 8, without)) == every and len(made) == 3
    row = json.loads(json.dumps({"fault": fault, "seed": 1, **dataclasses.asdict(every["rate", "acts"])}))
    assert rescue.Outcome.of(row) == every["rate", "acts"]


def test_effects_and_interactions_are_those_that_were_put_in() -> None:
    def loss(arm: str, wgrad: float) -> float:
        fprop, dgrad, both = 0.5 * ("fprop" in arm), 0.25 * ("dgrad" in arm), 4.0 * ("dgrad" in arm and "wgrad" in arm)
        return 2 + fprop + dgrad + wgrad * ("wgrad" in arm) + both + 8.0 * all(g in arm for g in ("fp", "dg", "wg"))

    effects = gemm_effects({arm: [loss(arm, 1.0), loss(arm, 3.0)] for arm in gemm_arms()})
    # by hand: alone, plus half of each interaction of two, plus a quarter of that of all three
    assert effects["fprop",] == [0.5 + 8 / 4] * 2
    assert effects["dgrad",] == [0.25 + 4 / 2 + 8 / 4] * 2
    assert effects["wgrad",] == [1 + 4 / 2 + 8 / 4, 3 + 4 / 2 + 8 / 4]
    assert effects["fprop", "dgrad"] == effects["fprop", "wgrad"] == [8 / 2] * 2
    assert effects["dgrad", "wgrad"] == [4 + 8 / 2] * 2
    assert effects["fprop", "dgrad", "wgrad"] == [8.0] * 2
