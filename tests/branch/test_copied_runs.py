"""A copy of a run within its sweep counts nowhere, and is named; a folder that was renamed is a run as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from altgrad.__main__ import main
from altgrad.compare import comparison, paired_gap
from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from dashboard.data.watched_sweep import WatchedSweep
from tests.support.results.written_runs import write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    """Three seeds of two formats, and a copy of one run, with an end of its own, before and after it by name."""
    sweep = Folder.at(tmp_path / "s")
    for fmt, loss in (("BF16", 2.0), ("E4M3", 2.1)):
        for seed in range(3):
            write_run(sweep, f"{fmt}-{seed}", {100: loss}, config={"format": fmt, "seed": seed, "max_steps": 100})
    for name in ("E4M3-1 (copy)", "A backup"):
        shutil.copytree(tmp_path / "s" / "E4M3-1", tmp_path / "s" / name)
    sweep.write_json("sweep.json", {"schema": 1, "runs": []})
    return sweep


def test_a_copy_of_a_run_is_named_and_counts_nowhere(sweep: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    runs, broken = list_runs(sweep)
    assert sorted(run.folder.name for run in runs) == [f"{fmt}-{seed}" for fmt in ("BF16", "E4M3") for seed in range(3)]
    assert broken.keys() == {"E4M3-1 (copy)", "A backup"} and all(
        "a copy of run E4M3-1" in why for why in broken.values()
    )
    gap = paired_gap(row for row in comparison(runs) if row.format == "E4M3")
    assert (gap.n, gap.runs) == (3, 3)
    assert main(["compare", str(sweep)]) == 0
    assert "acopyofrunE4M3-1" in "".join(capsys.readouterr().out.split())
    watched = WatchedSweep(sweep)
    watched.refresh()
    assert [run.name for run in watched.runs] == sorted(run.name for run in runs) and watched.broken == broken
    found = watched.run("E4M3-1")
    assert found is not None and found.folder.name == "E4M3-1"


def test_a_renamed_run_counts_and_two_strange_copies_count_once(sweep: Folder, tmp_path: Path) -> None:
    shutil.move(str(tmp_path / "s" / "E4M3-1"), str(tmp_path / "s" / "renamed"))
    runs, broken = list_runs(sweep)
    assert sum(run.name == "E4M3-1" for run in runs) == 1 and len(runs) == 6 and len(broken) == 2
    for name in broken:
        shutil.rmtree(tmp_path / "s" / name)
    runs, broken = list_runs(sweep)
    assert len(runs) == 6 and not broken
