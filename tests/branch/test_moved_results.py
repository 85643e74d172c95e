"""Results that were moved: a branch still finds the steps before it, and without its parent gets no other gap."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from altgrad.collapse import store_gap
from altgrad.config.train_config import TrainConfig
from altgrad.results import RunWriter, read_run
from altgrad.results.reading.ancestors import losses_before, losses_by_step, lost_ancestor, parent_of, records_until
from altgrad.storage.folder import Folder

CONFIG = TrainConfig(max_steps=60)


def write(folder: Folder, losses: dict[int, float], branch: tuple[Folder, int] | None = None) -> None:
    writer = RunWriter(folder, flush_seconds=1e9)
    origin: dict[str, Any] | None = None
    if branch is not None:
        origin = {"parent": str(branch[0]), "run": branch[0].name, "step": branch[1], "changes": {}}
    writer.start({"run": folder.name, "config": CONFIG.model_dump(mode="json"), "branch": origin, "vocabulary": 256})
    for step, loss in losses.items():
        writer.step({"step": step, "loss": loss})
    writer.end("completed", None, {})


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    """A baseline, a parent that is behind it, a branch from step 40, a branch of that, and an arm of an explanation."""
    sweep = Folder.at(tmp_path / "sweep")
    write(sweep / "baseline", {step: 5.0 - step / 30 for step in range(1, 61)})
    write(sweep / "parent", {step: 5.5 for step in range(1, 61)})
    write(sweep / "branch", {step: 4.0 for step in range(41, 61)}, (sweep / "parent", 40))
    write(sweep / "again", {step: 3.0 for step in range(51, 61)}, (sweep / "branch", 50))
    write(sweep / "parent" / "explain" / "control", {step: 6.0 for step in range(21, 61)}, (sweep / "parent", 20))
    return sweep


RUNS = ("branch", "again", "parent/explain/control")


def facts(sweep: Folder) -> list[Any]:
    return [
        (records_until(sweep / name, columns=["loss"]), losses_before(sweep / name), losses_by_step(sweep / name))
        for name in RUNS
    ]


def test_ancestors_are_found_where_the_results_are_now(sweep: Folder, tmp_path: Path) -> None:
    before = facts(sweep)
    assert [len(records) for records, *_ in before] == [60, 60, 60] and len(before[1][1]) == 50
    shutil.move(str(tmp_path / "sweep"), str(tmp_path / "moved"))
    moved = Folder.at(tmp_path / "moved")
    assert facts(moved) == before
    assert [lost_ancestor(moved / name) for name in RUNS] == [None] * 3
    found = parent_of(moved / "parent/explain/control")
    assert found is not None and found.path == (moved / "parent").path and parent_of(moved / "parent") is None


def test_a_gap_is_that_of_before_the_move_or_is_left_as_it_is(sweep: Folder, tmp_path: Path) -> None:
    def column(folder: Folder) -> list[Any]:
        return read_run(folder).table("steps", ["gap_to_baseline"])["gap_to_baseline"].to_pylist()

    assert store_gap(CONFIG, sweep / "branch", sweep / "baseline") is None
    known = column(sweep / "branch")
    assert known[0] is not None and known[0] > 1  # the parent was behind
    shutil.copytree(tmp_path / "sweep", tmp_path / "copy")
    shutil.rmtree(tmp_path / "sweep")
    copy = Folder.at(tmp_path / "copy")
    assert store_gap(CONFIG, copy / "branch", copy / "baseline") is None
    assert column(copy / "branch") == known
    shutil.rmtree(tmp_path / "copy" / "parent")
    for name in ("branch", "again"):
        refused = store_gap(CONFIG, copy / name, copy / "baseline")
        assert refused is not None and "sweep/parent" in refused and "\n" not in refused
    assert column(copy / "branch") == known


def test_another_run_in_the_parents_place_is_not_taken_for_it(sweep: Folder, tmp_path: Path) -> None:
    shutil.move(str(tmp_path / "sweep"), str(tmp_path / "moved"))
    moved = Folder.at(tmp_path / "moved")
    record = (moved / "parent").read_json("run.json")
    (moved / "parent").write_json("run.json", {**record, "run": "another"})
    assert parent_of(moved / "branch") is None and losses_before(moved / "branch") == {}
