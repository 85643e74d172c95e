"""Runs that go on: what a checkpoint waits for, what a later attempt takes from it, and what it says about it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altgrad.config.train_config import ConfigError
from altgrad.experiment import runner
from altgrad.experiment.attempts import next_attempt
from altgrad.experiment.checkpoints import checkpointing
from altgrad.experiment.checkpoints.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import Report
from altgrad.results import RunWriter, read_run
from altgrad.storage.folder import Folder
from tests.support.runs.told_runs import CONFIG, checkpoints, column, told_run

BASELINE = {step: 1.0 + step % 2 for step in range(1, 8)}


def last_state(folder: Folder) -> dict[str, Any]:
    state, corrupt = load_checkpoint(folder / "checkpoints")
    assert state is not None and corrupt == []
    del state["trainer"]["elapsed_seconds"]
    return state


def test_later_attempts_go_on_as_the_first_would_have_and_say_from_where(tmp_path: Path) -> None:
    folder, whole = Folder.at(tmp_path / "run"), Folder.at(tmp_path / "whole")
    own: dict[str, Any] = {"baseline": BASELINE, "bad": 6, "report_interval": 1}
    own["config"] = CONFIG.altered(non_finite_patience=2, stop_on_collapse=False)
    told_run(whole, **own)
    for step in (4, 5):
        with pytest.raises(KeyboardInterrupt):
            told_run(folder, hear=lambda news, step=step: _raise_at(news, step), **own)
    (folder / "checkpoints").write_bytes("step-000000006-000000000000.pt", b"cut short")
    (folder / "checkpoints").write_bytes("notes.txt", b"mine")
    result, told = told_run(folder, resources={"cpus": 2.0}, **own)
    assert [news.rows[0]["step"] for news in told] == [5, 6, 7] and result.steps == 7
    for name in ("loss", "gap_to_baseline"):
        assert str(column(folder, name)) == str(column(whole, name))
    assert repr(last_state(folder)) == repr(last_state(whole)) and result.best_loss is not None
    events = read_run(folder).table("events").to_pandas()
    own_events = events[events["kind"].isin(["checkpoint_fallback", "restore"])]
    assert own_events["kind"].tolist() == ["restore", "checkpoint_fallback", "restore"]
    assert set(own_events["step"]) == {4}
    first, fallback, second = own_events["detail"]
    assert '"corrupt": "step-000000006-000000000000.pt"' in fallback and '"resumed_from_step": 4' in fallback
    assert all('"from_step": 4' in detail for detail in (first, second))
    assert '"attempt": 1' in first and '"attempt": 2' in second
    earlier = read_run(folder).info["earlier"]
    assert [part["attempt"] for part in earlier] == [0, 1] and all(part["seconds"] > 0 for part in earlier)
    assert (folder / "checkpoints").has("notes.txt")


def _raise_at(news: Report, step: int) -> None:
    if news.step == step:
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [RuntimeError("no\nroom"), KeyError("x"), TypeError("y"), ValueError("of\n old")])
def test_a_checkpoint_that_does_not_fit_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.at(tmp_path / "run")

    def load(trainer: runner.Trainer, state: Any) -> None:
        raise error

    with pytest.raises(KeyboardInterrupt):
        told_run(folder, hear=lambda news: _raise_at(news, 4), report_interval=1)
    with monkeypatch.context() as patched, pytest.raises(CheckpointError) as caught:
        patched.setattr(runner.Trainer, "load_state_dict", load)
        told_run(folder)
    said = " ".join(str(error).split()) if isinstance(error, ValueError) else repr(error)
    assert str(caught.value).startswith(f"{folder / 'checkpoints'}: {said}; the checkpoint is another version's")
    save_checkpoint(folder / "checkpoints", 5, {"losses": {}})
    with pytest.raises(CheckpointError, match=r"checkpoint: lacks detector, gap, trainer; [^\n]*$"):
        told_run(folder)


def test_a_checkpoint_waits_until_its_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked, there = Folder.at(tmp_path / "run"), [], []
    flush, save = RunWriter.flush, checkpointing.save_checkpoint

    def flushed(writer: RunWriter, *, durable: bool = False) -> bool:
        asked.append(durable)
        return flush(writer, durable=durable) and not (durable and len(there) == 1)  # the second is refused

    def saved(place: Folder, step: int, state: dict[str, Any]) -> str:
        there.append(column(folder, "step"))
        assert asked[-1], "written, and made to survive a loss of power"
        return save(place, step, state)

    monkeypatch.setattr(RunWriter, "flush", flushed)
    monkeypatch.setattr(checkpointing, "save_checkpoint", saved)
    told_run(folder, config=CONFIG.altered(checkpoint_interval=2), report=None)
    assert there == [[1, 2]] and checkpoints(folder) == [2]


def test_a_refused_checkpoint_is_skipped_told_and_forgotten_when_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = Folder.at(tmp_path / "run").patient(60), checkpointing.save_checkpoint
    outages: list[str] = []

    def refusing(place: Folder, step: int, state: dict[str, Any]) -> str:
        assert place.patience == 0, "training does not wait for storage"
        if step != 4:
            raise OSError("no\nspace")
        return save(place, step, state)

    monkeypatch.setattr(checkpointing, "save_checkpoint", refusing)
    outage = SimpleNamespace(refused=lambda error: outages.append(str(error)), over=lambda: outages.append("over"))
    monkeypatch.setattr(checkpointing, "Outage", lambda folder: outage)
    told_run(folder, config=CONFIG.altered(checkpoint_interval=2))
    assert checkpoints(folder) == [4] and outages == ["no\nspace", "over", *["no\nspace"] * 2]
    events = read_run(folder).table("events").to_pandas()
    assert list(zip(events["kind"], events["step"], strict=True)) == [
        ("checkpoint_skipped", step) for step in (2, 6, 7)
    ]
    assert '"reason": "no space"' in events["detail"][0]


def test_a_second_attempt_compiles_as_the_first_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, given = Folder.at(tmp_path / "run"), []

    class Recording(runner.Trainer):
        def __init__(self, *args: Any) -> None:
            given.append(args[4])  # compiled_before
            super().__init__(*args)

    monkeypatch.setattr(runner, "Trainer", Recording)
    with pytest.raises(KeyboardInterrupt):
        told_run(folder, hear=lambda news: (_ for _ in ()).throw(KeyboardInterrupt))
    folder.write_json("run.json", read_run(folder).info | {"compiled": "blocks"})
    told_run(folder)
    assert given == [None, "blocks"]


def test_a_run_of_an_older_version_goes_on_if_fields_that_it_lacks_have_their_default(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    fields = {name: value for name, value in CONFIG.model_dump().items() if name not in ("task", "accumulate")}
    writer = RunWriter(folder)
    writer.start({"config": fields, "compiled": "eager"})
    assert next_attempt(folder, CONFIG) == (1, "eager")
    writer.step({"step": 1, "loss": 2.0})
    writer.flush()
    with pytest.raises(ConfigError, match=r"another config \(accumulate\)"):
        next_attempt(folder, CONFIG.altered(accumulate=2))
