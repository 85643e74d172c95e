"""Studies: their pages say what their numbers say, and the effects in them are those that were put in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.studies.trained_studies import gemm_arms, gemm_effects, page

FOLDER = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("study_*.json")), ids=lambda file: file.stem)
def test_a_page_is_what_its_numbers_make(file: Path) -> None:
    record = json.loads(file.read_text())
    losses = record.pop("validation_loss")
    assert file.with_suffix(".md").read_text() == page(record, losses)
    assert f"({file.stem}.md)" in (FOLDER / "index.md").read_text()


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
