"""Parts that become one: at no moment, and after no crash, does a reader find a row twice or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from altgrad.results import SCHEMAS, RunWriter, read_rows, read_run, read_table, writer
from altgrad.storage.folder import Folder
from dashboard.data.run_tables import RunTables
from tests.servers.polling import wait_for
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.long

STEPS = 12


class Killed(BaseException):
    """The process is gone: nothing may catch this."""


@dataclass(frozen=True)
class WatchedFolder(Folder):
    """A folder that tells before each write, each deletion and after each look."""

    told: Callable[[str], None] = lambda what: None

    def write_bytes(self, name: str, content: Any, *, durable: bool = False) -> None:
        self.told(f"write {name}")
        super().write_bytes(name, content, durable=durable)

    def delete(self, name: str) -> None:
        self.told(f"delete {name}")
        super().delete(name)

    def list(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        found = super().list(recursive=recursive)
        self.told(f"listed {self.name}")
        return found


def watched(path: Path, told: Callable[[str], None]) -> WatchedFolder:
    return WatchedFolder(pafs.LocalFileSystem(), str(path), told=told)


def started(folder: Folder, attempt: int = 0) -> RunWriter:
    begun = RunWriter(folder, attempt, flush_seconds=1e9)
    begun.start({"run": folder.name, "config": generated.InventedRun().config.model_dump()})
    return begun


def train(begun: RunWriter, first: int, last: int) -> None:
    """A part of each table per step."""
    for step in range(first, last + 1):
        begun.step({"step": step, "loss": 1.0 / step})
        begun.layers([{"step": step, "layer": "a", "site": "weight", "stall_rate": 0.5}])
        begun.event(step, "clip", limit=1.0)
        begun.tensors([{"step": step, "layer": "a", "site": "weight", "exponents": [step], "sample": [0.5]}])
        begun.own(step, {"accuracy": step / 100})
        begun.flush()


def steps_of(folder: Folder, table: Any = "steps") -> list[int]:
    return [int(step) for step in read_table(folder, table)["step"].to_pylist()]


def files_of(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("part-*"))


def test_finished_run_has_one_part_per_table_with_all_its_rows(tmp_path: Path) -> None:
    begun = started(Folder.at(tmp_path))
    train(begun, 1, STEPS)
    before = {name: read_table(begun.folder, name) for name in SCHEMAS}
    assert len(files_of(tmp_path)) == STEPS * len(SCHEMAS)
    begun.end("completed", None, {})
    assert len(files_of(tmp_path)) == len(SCHEMAS)
    assert all(read_table(begun.folder, name).equals(before[name]) for name in SCHEMAS)


def test_long_run_never_has_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_MANY_PARTS", 4)
    begun = started(Folder.at(tmp_path))
    for step in range(1, 23):
        train(begun, step, step)
        assert len(files_of(tmp_path / "steps")) <= step // 4 + 4
        assert steps_of(begun.folder) == list(range(1, step + 1))
    begun.end("completed", None, {})
    assert files_of(tmp_path / "steps") == ["part-000-000000-000021.parquet"]
    assert steps_of(begun.folder, "tensors") == list(range(1, 23))


def test_reader_finds_every_row_once_at_every_moment_of_a_merge(tmp_path: Path) -> None:
    plain, following = Folder.at(tmp_path), RunTables(Folder.at(tmp_path))
    moments: list[str] = []

    def look(what: str) -> None:
        if watching:
            following.expect_more()
            for name in SCHEMAS:
                assert steps_of(plain, name) == list(range(1, STEPS + 1)), what
                assert following.read(name)["step"].to_pylist() == list(range(1, STEPS + 1)), what
            moments.append(what)

    watching = False
    begun = started(watched(tmp_path, look))
    train(begun, 1, STEPS)
    watching = True
    begun.end("completed", None, {})
    deleted = [what for what in moments if what.startswith("delete")]
    assert len(deleted) == STEPS * len(SCHEMAS) and "write end.json" in moments
    look("after")


@pytest.mark.parametrize("killed_at", range(0, 60, 7))
def test_kill_during_a_merge_costs_no_row_and_the_next_attempt_cleans_up(tmp_path: Path, killed_at: int) -> None:
    moments = 0

    def die(what: str) -> None:
        nonlocal moments
        if killing:
            moments += 1
            if moments > killed_at:
                raise Killed(what)

    killing = False
    begun = started(watched(tmp_path, die))
    train(begun, 1, STEPS)
    killing = True
    with pytest.raises(Killed):
        begun.end("completed", None, {})
    folder = Folder.at(tmp_path)
    assert all(steps_of(folder, name) == list(range(1, STEPS + 1)) for name in SCHEMAS)
    assert read_run(folder).end is None, "the end record comes last"
    restored = started(folder, attempt=1)
    train(restored, STEPS - 2, STEPS + 3)
    restored.end("completed", None, {})
    assert len(files_of(tmp_path)) == 2 * len(SCHEMAS), "one part per attempt and table"
    table = read_table(folder, "steps")
    assert table["step"].to_pylist() == list(range(1, STEPS + 4))
    assert table["attempt"].to_pylist() == [0] * (STEPS - 3) + [1] * 6


def test_reader_that_listed_the_parts_before_they_went_looks_again(tmp_path: Path) -> None:
    begun = started(Folder.at(tmp_path))
    train(begun, 1, STEPS)

    def end(what: str) -> None:
        if not begun.folder.has("end.json"):
            begun.end("completed", None, {})

    reader = watched(tmp_path, end)
    assert steps_of(reader) == list(range(1, STEPS + 1))
    assert read_rows(reader, "layers")[1] == {}


def test_reader_in_another_thread_sees_only_beginnings_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_MANY_PARTS", 3)
    folder, done = Folder.at(tmp_path), threading.Event()
    following = RunTables(folder)
    seen: list[list[int]] = []

    def poll() -> None:
        while not done.is_set():
            following.expect_more()
            seen.extend((steps_of(folder), following.read("steps", ["loss"])["step"].to_pylist()))

    thread = threading.Thread(target=poll)
    thread.start()
    begun = started(folder)
    train(begun, 1, 30)
    wait_for(lambda: len(seen) > 4)
    train(begun, 31, 60)
    begun.end("completed", None, {})
    done.set()
    thread.join()
    assert all(steps == list(range(1, len(steps) + 1)) for steps in seen)
    assert all(len(later) >= len(earlier) for earlier, later in zip(seen[::2], seen[2::2], strict=False))


def test_part_that_cannot_be_read_is_not_merged_away(tmp_path: Path) -> None:
    begun = started(Folder.at(tmp_path))
    train(begun, 1, 3)
    generated.corrupt_part(begun.folder)
    again = RunWriter(begun.folder)
    again.end("completed", None, {})
    table, broken = read_rows(begun.folder, "steps")
    assert table["step"].to_pylist() == [1, 2] and list(broken) == ["part-000-000002.parquet"]
    assert len(files_of(tmp_path / "events")) == 1, "the other tables are merged"


def test_storage_that_refuses_the_merge_costs_neither_rows_nor_the_end_record(tmp_path: Path) -> None:
    def refuse(what: str) -> None:
        if refusing and "part-000-000000-" in what:
            raise OSError("no space left on device")

    refusing = False
    begun = started(watched(tmp_path, refuse))
    train(begun, 1, STEPS)
    refusing = True
    begun.end("completed", None, {})
    assert steps_of(begun.folder) == list(range(1, STEPS + 1))
    assert read_run(Folder.at(tmp_path)).status == "completed"
