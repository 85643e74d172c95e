"""The dashboard's reader: it reads each part once, follows what changes, and survives what cannot be read."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from altgrad.compare import comparison
from altgrad.results import RunWriter, read_table
from altgrad.show.sweep_progress import newest_events, particulars, progress
from altgrad.storage.folder import Folder
from dashboard.data.run_tables import RunTables
from dashboard.data.sweep_frame import _measured_cells, _run_cells
from dashboard.data.watched_sweep import WatchedSweep
from tests.servers.polling import PATIENCE
from tests.support.results import generated_results as generated
from tests.support.results.written_runs import row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def opened_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parquet files that are opened, in order."""
    opened: list[str] = []
    original = pq.ParquetFile

    def note(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(getattr(file, "name", str(file)))
        return original(file, *arguments, **options)

    monkeypatch.setattr(pq, "ParquetFile", note)
    return opened


def write_steps(folder: Folder, first: int, last: int, attempt: int = 0, part: int = 0, loss: float = 1.0) -> None:
    writer = RunWriter(folder, attempt=attempt, flush_seconds=1e9)
    writer._part = part
    for step in range(first, last + 1):
        writer.step({"step": step, "loss": loss})
    writer.flush()


def look(sweep: WatchedSweep) -> int:
    """Refresh without waiting for the interval in which several viewers share a look."""
    sweep._looked = -math.inf
    return sweep.refresh()


def test_new_part_is_the_only_one_read(tmp_path: Path, opened_parts: list[str]) -> None:
    folder = Folder.at(tmp_path)
    write_steps(folder, 1, 10, part=0)
    tables = RunTables(folder)
    tables.read("steps", ["loss"])
    tables.read("steps", ["loss"])
    assert len(opened_parts) == 1
    write_steps(folder, 11, 15, part=1)
    tables.expect_more()
    assert tables.read("steps", ["loss"])["step"].to_pylist() == list(range(1, 16))
    assert len(opened_parts) == 2


def test_column_asked_for_later_joins_its_rows(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    run = generated.InventedRun(steps=30, eval_interval=10)
    written = generated.write_run(folder, run, "open", rows_per_part=7)
    tables = RunTables(written)
    tables.read("steps", ["loss"])
    expected = read_table(written, "steps", ["validation_loss"])
    assert tables.read("steps", ["validation_loss"]).equals(expected)


def test_restored_run_counts_its_later_attempt(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    write_steps(folder, 1, 10, loss=1.0)
    tables = RunTables(folder)
    tables.read("steps", ["loss"])
    write_steps(folder, 8, 12, attempt=1, loss=2.0)
    tables.expect_more()
    assert tables.read("steps", ["loss"])["loss"].to_pylist() == [1.0] * 7 + [2.0] * 5


def test_damaged_part_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    write_steps(folder, 1, 10, part=0)
    write_steps(folder, 11, 20, part=1)
    generated.corrupt_part(folder)
    tables = RunTables(folder)
    assert tables.read("steps", ["loss"]).num_rows == 10
    assert list(tables.broken_parts()) == ["steps/part-000-000001.parquet"]


def test_part_completed_later_is_read_then(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    write_steps(folder, 1, 10)
    part = tmp_path / "steps" / "part-000-000000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    tables = RunTables(folder)
    assert tables.read("steps", ["loss"]).num_rows == 0
    part.write_bytes(whole)
    tables.expect_more()
    assert tables.read("steps", ["loss"]).num_rows == 10
    assert tables.broken_parts() == {}


def test_finished_run_is_opened_as_one_file(tmp_path: Path, opened_parts: list[str]) -> None:
    run = generated.write_run(Folder.at(tmp_path), generated.InventedRun(steps=60), rows_per_part=3)
    opened_parts.clear()
    tables = RunTables(run)
    assert tables.read("steps", ["loss", "overflow_rate"]).num_rows == 60
    assert len(opened_parts) == 1


def test_parts_merged_behind_a_readers_back_are_read_as_one(tmp_path: Path) -> None:
    run = generated.write_run(Folder.at(tmp_path), generated.InventedRun(steps=60), "open", rows_per_part=3)
    expected = read_table(run, "steps", ["loss", "overflow_rate"])
    tables = RunTables(run)
    tables.read("steps", ["loss"])
    RunWriter(run).end("completed", None, {})
    assert tables.read("steps", ["loss", "overflow_rate"]).equals(expected)


def test_version_rises_with_news_and_only_then(tmp_path: Path) -> None:
    folder = generated.running_sweep(tmp_path)
    sweep = WatchedSweep(folder)
    first = look(sweep)
    assert look(sweep) == first
    run = next(run for run in sweep.runs if run.table("steps", []).num_rows)
    write_steps(run.folder, 71, 80, part=99)
    assert look(sweep) == first + 1
    updated = sweep.run(run.name)
    assert updated is not None and updated.table("steps", [])["step"].to_pylist()[-1] == 80
    assert look(sweep) == first + 1


def test_run_that_ends_changes_its_status(tmp_path: Path) -> None:
    folder = generated.running_sweep(tmp_path)
    sweep = WatchedSweep(folder)
    look(sweep)
    name = next(run.name for run in sweep.runs if run.name.startswith("bf16"))
    writer = RunWriter(folder / name)
    writer.end("completed", None, {})
    look(sweep)
    run = sweep.run(name)
    assert run is not None and run.status == "completed"
    RunWriter(folder / name, attempt=1).start(generated.InventedRun("BF16").info("running"))
    look(sweep)
    run = sweep.run(name)
    assert run is not None and run.status == "running", "a restored run is running again"


def test_silent_run_becomes_killed(tmp_path: Path) -> None:
    folder = generated.running_sweep(tmp_path)
    sweep = WatchedSweep(folder)
    version = look(sweep)
    run = sweep.runs[0]
    assert run.status == "running"
    old = time.time() - 300
    info = run.folder.read_json("run.json") | {"started": old}
    for part in Path(run.folder.path).rglob("part-*"):
        os.utime(part, (old, old))
    run.folder.write_json("run.json", info)
    assert look(sweep) > version
    assert sweep.runs[0].status == "killed"


def test_run_that_vanishes_is_forgotten(tmp_path: Path) -> None:
    folder = generated.new_sweep(tmp_path, "s")
    written = generated.write_run(folder, generated.InventedRun(steps=10))
    sweep = WatchedSweep(folder)
    look(sweep)
    folder.filesystem.delete_dir(written.path)
    look(sweep)
    assert sweep.runs == []


def test_finished_runs_are_not_read_again(tmp_path: Path, opened_parts: list[str]) -> None:
    folder = generated.large_sweep(tmp_path, runs=20, steps=50)
    sweep = WatchedSweep(folder)
    look(sweep)
    sweep.prefetch(sweep.runs, "steps", ["loss"])
    assert len(opened_parts) == 20
    look(sweep)
    sweep.prefetch(sweep.runs, "steps", ["loss"])
    assert len(opened_parts) == 20


class CountingDisk(pafs.LocalFileSystem):
    """Notes what is listed, looked at and opened."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def get_file_info(self, paths: Any) -> Any:
        self.asked += paths if isinstance(paths, list) else [paths]
        return super().get_file_info(paths)

    def open_input_file(self, path: Any) -> Any:
        self.asked.append(path)
        return super().open_input_file(path)


def test_a_look_at_finished_runs_without_news_is_one_listing_however_many_there_are(tmp_path: Path) -> None:
    disk = CountingDisk()
    sweep = WatchedSweep(Folder(disk, generated.large_sweep(tmp_path, runs=20, steps=2).path))
    look(sweep)
    assert len(sweep.runs) == 20 and len(disk.asked) > 20
    disk.asked.clear()
    look(sweep)
    assert [type(asked) for asked in disk.asked] == [pafs.FileSelector]


def test_progress_counts_steps_time_and_savings(tmp_path: Path) -> None:
    """One run of 100 steps finished in 5 s, one collapsed at 40 after 2 s, one running at 60, one planned."""
    folder = generated.new_sweep(tmp_path, "s", planned=4)
    now = time.time()
    begun = now - 10
    for format, until, ending in (("BF16", 100, "completed"), ("E7M0", 40, "collapsed"), ("E4M3", 60, "open")):
        run = generated.InventedRun(format, steps=100)
        verdict = generated.STALLED if ending == "collapsed" else None
        generated.write_run(folder, run, ending, until=until, verdict=verdict, started=begun)  # type: ignore[arg-type]
    sweep = WatchedSweep(folder)
    look(sweep)
    state = progress(comparison(sweep.runs), sweep.runs, sweep.planned, now)
    assert state.steps == 200
    assert state.planned_steps == 200 + 40 + 100
    assert state.spent == pytest.approx(5 + 2 + 3)
    assert state.saved == pytest.approx(60 * 0.05)
    assert state.seconds_left == pytest.approx(140 / (200 / 10), rel=0.01)
    assert not state.is_over


@pytest.mark.parametrize(("silent_for", "known"), [(30.0, True), (3600.0, False)])
def test_time_left_is_known_between_two_trials_and_not_after_a_sweep_was_given_up(
    tmp_path: Path, silent_for: float, known: bool
) -> None:
    folder = generated.new_sweep(tmp_path, "s", planned=3)
    begun = time.time() - 10
    for seed in (1, 2):
        generated.write_run(folder, generated.InventedRun("BF16", seed=seed, steps=100), started=begun)
    sweep = WatchedSweep(folder)
    look(sweep)
    now = time.time() + silent_for
    state = progress(comparison(sweep.runs), sweep.runs, sweep.planned, now)
    assert not state.is_over
    assert state.seconds_left == (pytest.approx(100 / (200 / (now - begun)), rel=0.01) if known else None)


def test_newest_events_come_first_and_repeated_ones_once(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    writer = RunWriter(folder / "a", flush_seconds=1e9)
    writer.start(generated.InventedRun().info("s") | {"run": "a"})
    for step in range(5):
        writer.event(step, "clip", norm=2.0)
    for step in (5, 6):
        writer.event(step, "format_shift", **{"from": "E4M3", "to": "E5M2", "rate": 0.123456789})
    writer.flush()
    sweep = WatchedSweep(folder)
    look(sweep)
    assert newest_events(sweep.runs, 9) == [
        {
            "Run": "a",
            "Event": "format shift",
            "Times": 2,
            "Last step": 6,
            "Particulars": "from E4M3, to E5M2, rate 0.1235",
        },
        {"Run": "a", "Event": "clip", "Times": 5, "Last step": 4, "Particulars": "norm 2"},
    ]
    assert len(newest_events(sweep.runs, 1)) == 1
    assert particulars({"gradient_norm": float("inf")}) == "gradient norm inf"


def test_dashboard_opens_where_torch_and_ray_are_not_installed(tmp_path: Path) -> None:
    generated.write_run(generated.new_sweep(tmp_path, "s"), generated.InventedRun("BF16", steps=20))
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray", "wandb"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
from dashboard import streamlit_app
from streamlit.testing.v1 import AppTest
sys.argv = ["", {str(tmp_path)!r}]
app = AppTest.from_file(streamlit_app.__file__, default_timeout={PATIENCE}).run()
assert not app.exception, app.exception
print(app.title[0].value)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "Overview of s"


def test_cells_of_a_run_are_read_from_its_curves() -> None:
    columns = {"loss": [3.0, 1.0, 2.0], "validation_loss": [2.5, math.nan, 2.0], "ulps_moved_mean": [0.5, None, None]}
    steps = {"step": [10, 20, 30]}
    run: Any = SimpleNamespace(table=lambda _, names: pa.table(steps | {name: columns[name] for name in names}))
    cells = _measured_cells(run, with_sparkline=False)
    assert cells == {"loss_curve": None, "loss": 2.0, "best_step": 30, "ulps_moved_mean": 0.5}
    assert _run_cells(row(step=25, max_steps=100), cells)["progress"] == 25
