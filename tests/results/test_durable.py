"""What a run counts on after a loss of power is on the disk before it counts on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from altgrad.experiment.checkpoints.checkpoint import save_checkpoint
from altgrad.results import RunWriter
from altgrad.storage.folder import Folder
from tests.support.results.generated_results import InventedRun


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced and renamed, in order: ("sync", path) and ("name", path)."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def name(source: Any, target: Any) -> None:
        events.append(("name", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", name)
    return events


def test_a_record_is_on_the_disk_before_it_gets_its_name_and_its_name_before_the_call_returns(
    tmp_path: Path, done: list[tuple[str, str]]
) -> None:
    Folder.at(tmp_path).write_json("run.json", {"a": 1})
    (first, written), second, third = done
    assert first == "sync" and Path(written).name.startswith(".run.json.")
    assert (second, third) == (("name", str(tmp_path / "run.json")), ("sync", str(tmp_path)))


def test_a_checkpoint_is_written_after_every_row_it_counts_on_and_parts_alone_wait_for_no_disk(
    tmp_path: Path, done: list[tuple[str, str]]
) -> None:
    writer = RunWriter(Folder.at(tmp_path), flush_seconds=1e9)
    writer.start({"run": "a", "config": InventedRun().config.model_dump()})
    done.clear()
    for step in range(1, 4):
        writer.step({"step": step, "loss": 1.0})
        writer.event(step, "clip", limit=1.0)
        assert writer.flush()
    assert [what for what, _ in done] == ["name"] * 6
    assert writer.flush(durable=True)
    synced = {path for what, path in done if what == "sync"}
    assert synced == {path for what, path in done if what == "name"} | {str(tmp_path / t) for t in ("steps", "events")}
    done.clear()
    save_checkpoint(Folder.at(tmp_path) / "checkpoints", 3, {"step": 3})
    assert [what for what, _ in done] == ["sync", "name", "sync"]
    assert writer.flush(durable=True) and len(done) == 3, "what is on the disk is not written to it again"
