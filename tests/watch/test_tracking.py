"""The W&B copy of a run: what it may be called, and that it can fail in every way without the run noticing."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.sdk.artifacts._validators import validate_artifact_name, validate_project_name

from altgrad.config.train_config import TrainConfig
from altgrad.storage.folder import Folder
from tests.servers.polling import PATIENCE, wait_for_content
from tune.plan.options import WandbMode
from tune.plan.trial import Trial
from tune.watch import wandb_names as labels
from tune.watch.wandb_copy import REPORT, Tracker, chosen_mode

ROWS = [{"step": step, "loss": 5.0 - step} for step in (1, 2, 3)]
_ODD = "aZ09._+- /\\#?%:;,'\"\r\n\t\0\x1b\x7f\x85\u202e\ud800éß漢🎈"


def odd_names(count: int) -> list[str]:
    """Names of every length up to 300 out of what names may and may not hold, and the awkward ones one thinks of."""
    draw = random.Random(0)
    names = ["", " ", ".", "..", "-", "/", "a/b", "wandb-registry-", "team/", "/proj", "é" * 200, "x" * 64, "x" * 65]
    lengths = [draw.choice([1, 2, 5, 20, 64, 65, 128, 129, 300]) for _ in range(count)]
    anything = [chr(draw.randrange(0x110000)) for _ in range(50)]
    return names + ["".join(draw.choices([*_ODD, *anything], k=length)) for length in lengths]


def test_every_name_made_for_others_passes_their_own_validators() -> None:
    names = odd_names(300)
    for sweep, run in zip(names, reversed(names), strict=True):
        identity, artifact = labels.run_id(sweep, run), labels.artifact(sweep, run, "failure-report")
        assert wandb.Settings(run_id=identity).run_id == identity and len(identity) <= 64
        assert validate_artifact_name(artifact) == wandb.Artifact(artifact, type="failure-report").name.split(":")[0]
        for name in (labels.title(sweep), labels.title(run)):
            assert 0 < len(name) <= 128 and name.encode()
        entity, project = labels.project({"WANDB_PROJECT": run, "WANDB_ENTITY": sweep})
        assert validate_project_name(project) == wandb.Settings(project=project, entity=entity).project


def test_two_runs_never_share_an_id() -> None:
    names = set(odd_names(2000))
    assert len({labels.run_id("s", name) for name in names}) == len(names)
    assert len({labels.artifact("s", name, "failure-report") for name in names}) == len(names)


def test_a_project_may_name_its_entity_as_w_and_b_writes_it() -> None:
    assert labels.project({"WANDB_PROJECT": "team/proj"}) == ("team", "proj")
    assert labels.project({"WANDB_PROJECT": "team/proj", "WANDB_ENTITY": "other"}) == ("other", "proj")
    assert labels.project({"WANDB_PROJECT": "proj"}) == (None, "proj")
    assert labels.project({}) == (None, "altgrad")


@pytest.mark.parametrize(
    ("option", "variables", "mode", "overridden"),
    [
        (None, {}, "offline", ""),
        (None, {"WANDB_MODE": "online"}, "online", ""),
        (None, {"WANDB_MODE": "dryrun"}, "offline", ""),
        (None, {"WANDB_MODE": "disabled"}, "disabled", ""),
        (None, {"WANDB_DISABLED": "true"}, "disabled", ""),
        (None, {"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online", ""),
        (None, {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled", "WANDB_MODE=online"),
        (None, {"WANDB_MODE": "shared"}, "offline", "WANDB_MODE=shared"),
        ("offline", {"WANDB_MODE": "online"}, "offline", "WANDB_MODE=online"),
        ("online", {"WANDB_DISABLED": "1"}, "online", "WANDB_DISABLED=true"),
        ("disabled", {"WANDB_MODE": "disabled"}, "disabled", ""),
    ],
)
def test_w_and_b_s_own_variables_are_followed_or_said_to_be_overridden(
    option: WandbMode | None, variables: dict[str, str], mode: str, overridden: str
) -> None:
    chosen, notes = chosen_mode(option, variables)
    assert chosen == mode
    assert len(notes) == bool(overridden) and all(note.startswith(f"{overridden} is overridden by") for note in notes)


class OwnError(BaseException):
    """Neither an OSError nor even an Exception."""


def fake_wandb(fails_in: str, how: Any, told: list[str]) -> Any:
    """A W&B that does what its tests want in one of its calls."""

    def call(name: str) -> Any:
        def answer(*arguments: object, **options: object) -> Any:
            told.append(name)
            if name == fails_in:
                how()
            return run

        return answer

    class File:
        def __enter__(self) -> File:
            return self

        def __exit__(self, *error: object) -> None: ...

        def write(self, content: bytes) -> None: ...

    run = SimpleNamespace(log=call("log"), log_artifact=call("log_artifact"), finish=call("finish"))
    artifact = SimpleNamespace(new_file=lambda *a, **k: File())

    def make_artifact(*arguments: object, **options: object) -> Any:
        call("artifact")()
        return artifact

    return SimpleNamespace(init=call("init"), Settings=call("settings"), Artifact=make_artifact, run=run)


def raises(error: type[BaseException]) -> Any:
    def how() -> None:
        raise error("of its own kind\nwith a second line")

    return how


def copied(monkeypatch: pytest.MonkeyPatch, folder: Path, module: Any, patience: float = PATIENCE) -> Tracker:
    """A run of three rows tracked by a fake."""
    monkeypatch.setitem(sys.modules, "wandb", module)
    run = Folder.at(folder / "run")
    run.write_bytes(REPORT, b"# why")
    tracker = Tracker(Trial("e4m3+clip", TrainConfig(format="E4M3")), "s", run, "offline", patience)
    for row in ROWS:
        tracker.log([row])
    tracker.finish()
    return tracker


@pytest.mark.parametrize("where", ["settings", "init", "log", "artifact", "log_artifact", "finish"])
@pytest.mark.parametrize("error", [ValueError, OSError, wandb.Error, SystemExit, OwnError])
def test_whatever_w_and_b_raises_wherever_it_costs_the_copy_and_not_the_run(
    where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracker = copied(monkeypatch, tmp_path, fake_wandb(where, raises(error), []))
    assert tracker.lost is not None and tracker.lost.startswith(f"its W&B run is incomplete: {error.__name__}")
    assert "\n" not in tracker.lost


def test_a_w_and_b_that_cannot_even_be_imported_costs_the_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracker = copied(monkeypatch, tmp_path, None)
    assert tracker.lost is not None and "ModuleNotFoundError" in tracker.lost


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_w_and_b_that_hangs_holds_the_run_for_a_bounded_time(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for_ever = threading.Event()
    tracker = copied(monkeypatch, tmp_path, fake_wandb(where, for_ever.wait, []), patience=0.2)
    assert tracker.lost is not None and "0.2 s" in tracker.lost
    for_ever.set()


def test_what_is_tracked_arrives_in_order_with_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    tracker = copied(monkeypatch, tmp_path, fake_wandb("", None, told))
    assert tracker.lost is None
    assert [name for name in told if name != "settings"] == [
        "init", "log", "log", "log", "artifact", "log_artifact", "finish",
    ]  # fmt: skip


def test_the_real_w_and_b_takes_a_run_of_any_name_into_the_folder_its_user_wants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    for name, value in {"PROJECT": "team/proj", "ENTITY": "", "MODE": "nonsense"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = Folder.at(tmp_path / "run")
    run.write_bytes(REPORT, b"# why")
    tracker = Tracker(Trial("e4m3-s42+clip", TrainConfig(format="E4M3")), "s", run, "offline", patience=PATIENCE)
    tracker.log(ROWS)
    tracker.finish()
    assert tracker.lost is None
    [file] = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/*.wandb")
    wait_for_content(file, b"failure_report.md")  # its service writes that after the run's end
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_sweep_without_an_installed_wandb_is_not_copied_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing = "no copy for W&B, which is not installed: pip install 'altgrad[wandb]'"
    assert chosen_mode(None, {}) == ("disabled", [missing])
    assert chosen_mode(None, {"WANDB_MODE": "online"}) == ("disabled", [missing])
    assert chosen_mode(None, {"WANDB_DISABLED": "true"}) == ("disabled", [])
