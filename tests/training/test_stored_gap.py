"""The gap to the baseline stands in a run's rows, whichever of the two was over first."""

from __future__ import annotations

from typing import Any

import pytest

from altgrad.collapse import store_gap
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner, TrainConfig, run_format_experiment
from tests.support.runs.small_runs import SMALL

BF16 = SMALL.altered(format="BF16", max_steps=30)
OTHER = BF16.altered(format="E2M5", learning_rate=0.02)


def column(folder: Folder, name: str = "gap_to_baseline") -> list[Any]:
    return read_run(folder).table("steps").to_pandas()[name].tolist()


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> tuple[Folder, list[Any]]:
    """A baseline, and the gaps of a run that knew it from the start."""
    folder = Folder.at(tmp_path_factory.mktemp("sweep"))
    run_format_experiment(BF16, folder / "baseline")
    losses = dict(zip(column(folder / "baseline", "step"), column(folder / "baseline", "loss"), strict=True))
    run_format_experiment(OTHER, folder / "second wave", baseline=losses)
    return folder, column(folder / "second wave")


def beside(config: TrainConfig, folder: Folder) -> None:
    """A run that knew no baseline, in two attempts."""

    def die(report: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FormatExperimentRunner(config, folder, report=die, report_interval=7).run()
    run_format_experiment(config, folder)


def test_a_run_beside_its_baseline_gets_the_gaps_of_one_that_came_after_it_bit_for_bit(known):
    folder, expected = known
    run = folder / "beside"
    beside(OTHER, run)
    before = read_run(run)
    tables = {name: before.table(name) for name in ("layers", "events")}
    rows = before.table("steps").drop_columns(["gap_to_baseline"])
    assert store_gap(OTHER, run, folder / "baseline") is None
    assert column(run) == expected and None not in expected and len(set(expected)) > 20
    after = read_run(run)
    assert after.table("steps").drop_columns(["gap_to_baseline"]).equals(rows)
    assert all(after.table(name).equals(table) for name, table in tables.items())


def test_what_a_run_knew_already_is_not_written_again(known, monkeypatch):
    folder, expected = known
    monkeypatch.setattr("altgrad.collapse.stored_gap.replace_rows", lambda *_: pytest.fail("written again"))
    assert store_gap(OTHER, folder / "second wave", folder / "baseline") is None
    assert column(folder / "second wave") == expected


def test_a_baseline_that_began_with_other_weights_gives_a_sentence_and_no_gap(known):
    folder, _ = known
    other = OTHER.altered(seed=7)
    run_format_experiment(other, folder / "other seed")
    said = store_gap(other, folder / "other seed", folder / "baseline")
    assert said is not None and "began with other initial weights" in said and "\n" not in said
    assert set(map(str, column(folder / "other seed"))) <= {"nan", "None"}


def test_a_run_is_given_no_gap_to_a_baseline_that_began_with_other_weights(known):
    folder, _ = known
    losses = dict.fromkeys(range(1, 31), 3.0)
    start = read_run(folder / "baseline").info
    options = {"baseline": losses, "baseline_start": start}
    same = run_format_experiment(OTHER, folder / "given", **options)
    other = run_format_experiment(OTHER.altered(seed=8), folder / "given other", **options)
    assert len(set(column(same.folder))) > 20 and "no_gap" not in read_run(same.folder).info
    assert set(map(str, column(other.folder))) <= {"nan", "None"}
    assert "the baseline began with other initial weights" in read_run(other.folder).info["no_gap"]
