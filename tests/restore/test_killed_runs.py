"""A run that was killed goes on from its checkpoint as if it had not been; checkpoints of others are refused."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
from typing import Any

import pytest

from altgrad.experiment.checkpoints import checkpointing
from altgrad.experiment.checkpoints.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import ExperimentResult
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner
from altgrad.training.trainer import StepOutcome, Trainer
from tests.support.runs.restored_runs import EVERYTHING, STEPS, Data, Net
from tests.support.runs.small_runs import TIMED

pytestmark = pytest.mark.long


class Killed(BaseException):
    """Stands for a process that dies: nothing in the runner may catch it."""


BASELINE = {step: 4.0 + math.sin(step) for step in range(1, STEPS + 1)}


def runner(folder: Any, **options: Any) -> FormatExperimentRunner:
    place = Folder.at(folder)
    return FormatExperimentRunner(EVERYTHING, place, model=Net(), batches=Data(), baseline=BASELINE, **options)


def tables(result: ExperimentResult) -> dict[str, str]:
    run = read_run(result.folder)
    found = {}
    for name in ("steps", "layers", "tensors"):
        table = run.table(name).to_pandas()
        found[name] = table.drop(columns=[c for c in ("attempt", "time", *TIMED) if c in table]).to_csv()
    events = run.table("events").to_pandas()
    own = events[~events.kind.isin(["restore", "checkpoint_fallback"])]
    return found | {"events": own[["step", "kind", "detail"]].to_csv(index=False)}


def shown(result: ExperimentResult) -> tuple[Any, ...]:
    return (*tables(result).items(), repr(result.verdict), result.steps, result.best_loss, result.final_validation_loss)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Any, ...]:
    return shown(runner(tmp_path_factory.mktemp("straight") / "run").run())


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = Trainer.step

    def dies(self: Trainer) -> StepOutcome:
        if self.step_number + 1 == step:
            raise Killed
        return real(self)

    monkeypatch.setattr(Trainer, "step", dies)


@pytest.mark.parametrize("step", [4, 11, 12, 13, 14, 16, 21, 24])
def test_a_run_killed_before_a_step_ends_as_if_it_had_not_been(straight, step, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        die_at(patched, step)
        with pytest.raises(Killed):
            runner(tmp_path / "run").run()
    assert shown(runner(tmp_path / "run").run()) == straight
    assert "rule='non_finite'" in straight[4]


@pytest.mark.parametrize("entry", ["detector", "losses", "gap"])
def test_each_entry_of_a_checkpoint_is_needed(entry, straight, tmp_path, monkeypatch):
    empty: dict[str, Any] = {}
    save = checkpointing.save_checkpoint

    def first_state(folder: Folder, step: int, state: dict[str, Any]) -> str:
        return save(folder, step, state | {entry: empty[entry]})

    from altgrad.collapse import BaselineGap, CollapseDetector
    from altgrad.experiment.outcome import LossSummary

    empty["detector"] = CollapseDetector(EVERYTHING, None).state_dict()
    empty["losses"] = LossSummary().state_dict()
    empty["gap"] = BaselineGap(BASELINE).state_dict()
    with monkeypatch.context() as patched:
        patched.setattr(checkpointing, "save_checkpoint", first_state)
        die_at(patched, 13)
        with pytest.raises(Killed):
            runner(tmp_path / "run").run()
    assert shown(runner(tmp_path / "run").run()) != straight


OLDER = [
    ("trainer", "interventions", 0, "companions"),
    ("trainer", "quantized"),
    ("trainer", "tokens"),
    ("trainer",),
    ("losses", "best"),
    ("detector",),
    ("gap",),
    ("trainer", "interventions", 1),
    ("trainer", "diagnostics"),
]


@pytest.mark.parametrize("change", ["lacks", "renamed"])
@pytest.mark.parametrize("path", OLDER, ids=str)
def test_a_checkpoint_of_another_version_is_one_line(path, change, tmp_path, monkeypatch):
    save = checkpointing.save_checkpoint

    def older(folder: Folder, step: int, state: dict[str, Any]) -> str:
        state = copy.deepcopy(state)
        place: Any = state
        for key in path[:-1]:
            place = place[key]
        entry = place.pop(path[-1])
        if change == "renamed" and isinstance(place, dict):
            place[f"{path[-1]}_of_old"] = entry
        return save(folder, step, state)

    with monkeypatch.context() as patched:
        patched.setattr(checkpointing, "save_checkpoint", older)
        die_at(patched, 13)
        with pytest.raises(Killed):
            runner(tmp_path / "run").run()
    with pytest.raises(CheckpointError) as caught:
        runner(tmp_path / "run").run()
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'run' / 'checkpoints'}: ") and "another version's" in said
    assert "\n" not in said and len(said) < 500 and ("lacks" in said or "has" in said or "expected" in said)
    assert read_run(Folder.at(tmp_path / "run")).status == "failed"


def test_a_checkpoint_of_another_program_is_passed_over(tmp_path):
    folder = Folder.at(tmp_path)
    save_checkpoint(folder, 1, {"step": 1})
    content = pickle.dumps(Data())
    folder.write_bytes(f"step-{2:09d}-{hashlib.sha256(content).hexdigest()[:12]}.pt", content)
    state, corrupt = load_checkpoint(folder)
    assert state == {"step": 1} and len(corrupt) == 1


def test_a_run_killed_right_after_a_checkpoint_has_all_rows_up_to_it(straight, tmp_path, monkeypatch):
    save = checkpointing.save_checkpoint

    def save_and_die(folder: Folder, step: int, state: dict[str, Any]) -> str:
        save(folder, step, state)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpointing, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            runner(tmp_path / "run", report_interval=10).run()
    rows = read_run(Folder.at(tmp_path / "run")).table("steps")["step"].to_pylist()
    assert rows == [1, 2, 3, 4]
    assert shown(runner(tmp_path / "run").run()) == straight


def test_a_run_that_goes_on_after_a_failure_is_not_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Net, "forward", lambda self, x, y: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner(tmp_path / "run").run()
    folder = Folder.at(tmp_path / "run")
    assert read_run(folder).status == "failed"
    with monkeypatch.context() as patched:
        die_at(patched, 3)
        with pytest.raises(Killed):
            runner(tmp_path / "run").run()
    assert not folder.has("end.json") and read_run(folder).end is None
