"""A restored run repeats the undisturbed one bit for bit, whatever had happened before, and needs all of its state."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altgrad.experiment import checkpointing
from altgrad.experiment.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import ExperimentResult
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner, TrainConfig
from altgrad.training.trainer import StepOutcome, Trainer
from tests.servers.polling import PATIENCE
from tests.support.small_runs import TIMED, untimed

STEPS = 24
BROKEN = (5, 11, 12, 13, 20)  # batches with a NaN: they poison the running statistics, so that the weights go back
EVERYTHING = TrainConfig(
    format="E4M3", gradient_format="E3M4", max_steps=STEPS, batch_size=16, warmup_steps=2, learning_rate=0.02,
    gradient_clip=0.5, eval_interval=5, diagnostic_interval=3, checkpoint_interval=4, compile=False, threads=1,
    scaling="delayed", amax_history=4, amax_factor=0.5, rounding="stochastic",
    master_weights=False, update_rounding="stochastic",
    enable_partition_clipping=True, enable_emergency_shift=True, emergency_shift_nan_patience=3,
    log_stiffness=True, log_grid_alignment=True, log_ulp=True, use_shadow=True,
    stop_on_collapse=False, non_finite_patience=3,
)  # fmt: skip
MASTERS = EVERYTHING.altered(master_weights=True, update_rounding="nearest")
_STOCHASTIC = {"format": "E4M3", "block": "1x32", "rounding": "stochastic"}
KAHAN = EVERYTHING.altered(update_rounding="kahan", second_moment=_STOCHASTIC)
ECO = EVERYTHING.altered(
    update_rounding="eco_stochastic", first_moment=_STOCHASTIC | {"range_expansion": True}, second_moment=_STOCHASTIC
)


class Net(nn.Module):
    """Somebody else's model, with everything that has a state or draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.body = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        )
        with torch.no_grad():
            for parameter in self.body.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.3, generator=generator)
                elif parameter.ndim == 1:
                    parameter.fill_(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.body(x), y)


class Data:
    """A map to learn; the batch of step 2 is an easy one, those of `BROKEN` hold a NaN."""

    vocabulary = None

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        y = torch.zeros(16, 4) if step == 2 else 3 * x[:, :4] - x[:, 4:] + 2
        if step in BROKEN:
            x[3, 3] = math.nan
        return x, y

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        return [self.training(1000)]

    def digest(self) -> str:
        return "a map"


def trainer_of(config: TrainConfig) -> Trainer:
    return Trainer(config, Net(), Data())


def stored(state: Mapping[str, Any]) -> dict[str, Any]:
    """What comes back from a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def seen(outcomes: Sequence[StepOutcome], trainer: Trainer) -> str:
    """Everything a run shows, NaN and inf by name, and its weights."""
    rows = [(untimed(o.record), list(o.layers), list(o.tensors), o.events) for o in outcomes]
    return repr(rows) + repr(
        [part.tolist() for part in trainer.model.state_dict().values() if part.is_floating_point()]
    )


def trained(config: TrainConfig) -> tuple[list[dict[str, Any]], Callable[[int], str]]:
    """The state before each step, and what an undisturbed run shows from a step on."""
    trainer, states, outcomes = trainer_of(config), [], []
    for _ in range(STEPS):
        states.append(stored(trainer.state_dict()))
        outcomes.append(trainer.step())
    return states, lambda step: seen(outcomes[step:], trainer)


def go_on(config: TrainConfig, state: Mapping[str, Any]) -> str:
    torch.manual_seed(12345)  # another process has other random numbers
    trainer = trainer_of(config)
    trainer.load_state_dict(state)
    return seen([trainer.step() for _ in range(state["step"], STEPS)], trainer)


@pytest.fixture(scope="module", params=[EVERYTHING, MASTERS, KAHAN, ECO], ids=["stored", "masters", "kahan", "eco"])
def undisturbed(request) -> tuple[TrainConfig, list[dict[str, Any]], Callable[[int], str]]:
    return request.param, *trained(request.param)


def test_everything_that_can_happen_to_a_run_happens_to_this_one(undisturbed):
    _, _, after = undisturbed
    for kind in ("skip", "rollback", "format_shift", "clip"):
        assert f"kind='{kind}'" in after(0), kind
    assert "'to_step': 3" in after(0) and "'to_step': 18" in after(0)


def test_a_run_restored_at_any_step_repeats_all_that_follows_bit_for_bit(undisturbed):
    config, states, after = undisturbed
    for step, state in enumerate(states):
        assert go_on(config, state) == after(step), step


def entries(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of what a state dict holds, down to what belongs together: all weights, all moments, all of one counter."""
    inner = state.items() if isinstance(state, dict) else enumerate(state) if path == ("interventions",) else ()
    if (
        not inner
        or path in (("model",), ("optimizer",))
        or len(path) == 3
        or (path[:1] == ("quantized",) and len(path) == 2)
    ):
        yield path
        return
    for key, value in inner:
        yield from entries(value, (*path, key))


def replaced(state: dict[str, Any], path: tuple[Any, ...], fresh: Any) -> dict[str, Any]:
    """The state with one entry as a new run has it."""
    changed = copy.deepcopy(state)
    place: Any = changed
    for key in path[:-1]:
        place, fresh = place[key], fresh[key]
    place[path[-1]] = fresh[path[-1]]
    return changed


def test_each_entry_of_the_state_is_needed():
    """For each there is a step at which a run that lacks it goes another way; with masters or without."""
    needless: dict[tuple[Any, ...], int] = {}
    for config in (EVERYTHING, MASTERS, KAHAN):
        states, after = trained(config)
        for path in entries(states[0]):
            if (
                path in (("elapsed_seconds",), ("interventions", 2), ("quantized", "histories"))
                or needless.get(path) == 0
            ):
                continue  # a time; the clipper, which has no state; see below
            same = all(go_on(config, replaced(states[k], path, states[0])) == after(k) for k in (7, 10, 12, 19))
            needless[path] = int(same)
    assert [path for path, same in needless.items() if same] == []
    assert len(needless) >= 12


def test_running_statistics_are_needed():
    states, after = trained(EVERYTHING)
    for part in ("running_mean", "running_var"):
        state = copy.deepcopy(states[8])
        names = [name for name in state["model"] if part in name]
        for name in names:
            state["model"][name] = states[0]["model"][name]
        assert names and go_on(EVERYTHING, state) != after(8), part


def test_the_time_of_a_run_goes_on_where_it_was():
    trainer = trainer_of(EVERYTHING)
    state = trainer.state_dict() | {"elapsed_seconds": 1000.0, "tokens": 77}
    trainer.load_state_dict(state)
    record = trainer.step().record
    assert 1000 < record["elapsed_seconds"] < 1000 + PATIENCE and record["tokens"] == 77 + 16


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


def test_the_caller_s_random_numbers_are_left_alone():
    trainer = trainer_of(EVERYTHING)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer.step()
    trainer.validation_loss()
    trainer.step()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_dropout_masks_are_the_same_in_every_run_of_a_seed_and_others_at_every_step(compiled):
    """FP32 twice in one process, and the masks as the model draws them in another format."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 1, bias=False)
            nn.init.ones_(self.linear.weight)
            self.register_buffer("mask", torch.zeros(64))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            ones = nn.functional.dropout(torch.ones(64), 0.5, self.training)
            if self.training:
                self.mask.copy_(ones)
            return self.linear(x).mean() + ones.mean()

    def masks(**changes: Any) -> list[list[float]]:
        torch.rand(1)
        config = MASTERS.altered(use_shadow=False, compile=compiled, **changes)
        trainer, found = Trainer(config, Masked(), Data()), []
        for _ in range(4):
            trainer.step()
            found.append(trainer.model.mask.tolist())
        return found

    first = masks(format="FP32", gradient_format=None)
    assert first == masks(format="FP32", gradient_format=None) == masks(format="E7M0", scaling="none")
    assert all(one != other for place, one in enumerate(first) for other in first[:place])
    assert masks(seed=8) != first


def test_what_a_model_draws_from_python_and_numpy_repeats_with_seed_and_step_and_the_caller_s_is_left_alone():
    drawn: list[tuple[float, float]] = []

    class Drawing(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            drawn.append((random.random(), float(np.random.random())))
            return super().forward(x, y)

    def draws(**changes: Any) -> list[tuple[float, float]]:
        drawn.clear()
        trainer = Trainer(MASTERS.altered(use_shadow=False, **changes), model=Drawing(), batches=Data())
        for _ in range(3):
            trainer.step()
        return list(drawn)

    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()
    first = draws()
    assert random.getstate() == before[0] and all(map(np.array_equal, np.random.get_state(), before[1]))
    random.seed(6)
    assert draws(format="E5M2") == first and len({one for pair in first for one in pair}) == 6
    assert draws(seed=8) != first


def test_the_shadow_drops_what_the_step_dropped():
    config = MASTERS.altered(format="FP32", gradient_format=None, scaling="none", rounding="nearest", amax_factor=1.0)
    trainer = trainer_of(config.altered(diagnostic_interval=1, enable_partition_clipping=False))
    record = trainer.step().record
    assert record["shadow_loss"] == record["loss"] and record["gradient_snr_db"] == math.inf


def test_the_amax_histories_are_needed():
    """An empty one gives this run's powers of two by chance; one of other magnitudes does not."""
    states, after = trained(EVERYTHING)
    state = copy.deepcopy(states[8])
    for history in state["quantized"]["histories"].values():
        history.mul_(64)
    assert go_on(EVERYTHING, state) != after(8)
