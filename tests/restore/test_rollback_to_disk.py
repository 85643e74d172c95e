"""A rollback that the snapshot in memory did not help goes to a checkpoint on disk, also in a run that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.config.train_config import TrainConfig
from altgrad.experiment.checkpoints.checkpoint import load_checkpoint
from altgrad.results import read_run
from altgrad.results.reading.events import read_events
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from altgrad.training.step.passes import Passes
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL, untimed

CONFIG = SMALL.altered(
    format="E4M3", scaling="delayed", master_weights=False, max_steps=24, diagnostic_interval=2, checkpoint_interval=4,
    enable_rescue_ladder=True, rescue_rungs=["rollback"], rescue_window=2, keep_checkpoints="all",
)  # fmt: skip
BAD = range(13, 18)  # steps whose loss is ten times too large: rollbacks at 13, 15 and 17


class Killed(Exception):
    """The process dies."""


@pytest.fixture
def bad_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Passes.forward_backward

    def loss(self: Passes, step: int, parts: Any) -> torch.Tensor:
        return real(self, step, parts) * (10.0 if step in BAD else 1.0)

    monkeypatch.setattr(Passes, "forward_backward", loss)


def rollbacks(folder: Folder) -> list[tuple[int, int, str]]:
    events = [event for event in read_events(read_run(folder)) if event.kind == "rollback"]
    return [(event.step, event.detail["to_step"], event.detail["source"]) for event in events]


def rows(folder: Folder) -> list[dict[str, Any]]:
    found = read_run(folder).table("steps").to_pylist()
    return [untimed({k: v for k, v in row.items() if k not in ("attempt", "time") and v is not None}) for row in found]


def killed_at(config: TrainConfig, folder: Folder, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trainer.step

    def stop(self: Trainer) -> Any:
        if self.step_number == step:
            raise Killed
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stop)
        patched.setattr("altgrad.experiment.runner.FormatExperimentRunner._record_failure", lambda *_: None)
        with pytest.raises(Killed):
            run_format_experiment(config, folder)


def test_each_further_rollback_of_a_trouble_goes_to_an_older_checkpoint(tmp_path: Path, bad_losses: None) -> None:
    folder = run_format_experiment(CONFIG, tmp_path / "run").folder
    assert rollbacks(folder) == [(13, 12, "memory"), (15, 8, "checkpoint"), (17, 4, "checkpoint")]


def test_what_a_rollback_restores_is_what_the_checkpoint_holds(tmp_path: Path, bad_losses: None) -> None:
    run_format_experiment(CONFIG, tmp_path / "run", until=15)
    folder = Folder.at(tmp_path / "run" / "checkpoints")
    (now, _), (then, _) = load_checkpoint(folder, 15), load_checkpoint(folder, 8)
    assert now is not None and then is not None
    after, before = now["trainer"], then["trainer"]
    assert all(torch.equal(after["model"][name], value) for name, value in before["model"].items())
    moments = zip(after["optimizer"]["state"].values(), before["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(one[key], other[key]) for one, other in moments for key in other)
    histories = before["quantized"]["histories"]
    assert histories and all(torch.equal(after["quantized"]["histories"][n], h) for n, h in histories.items())
    assert after["step"] == 15 and after["tokens"] > before["tokens"]  # the batches since are not trained again


def test_a_killed_run_goes_back_to_the_same_checkpoint_bit_for_bit(
    tmp_path: Path, bad_losses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.altered(keep_checkpoints="octaves")
    straight = run_format_experiment(config, tmp_path / "straight").folder
    # at step 17 the checkpoints of steps 8, 12 and 16 are left
    assert rollbacks(straight) == [(13, 12, "memory"), (15, 8, "checkpoint"), (17, 8, "memory")]
    for step in (14, 16):
        folder = Folder.at(tmp_path / f"killed-{step}")
        killed_at(config, folder, step, monkeypatch)
        run_format_experiment(config, folder)
        assert rollbacks(folder) == rollbacks(straight) and rows(folder) == rows(straight)


def test_a_checkpoint_from_within_trouble_or_one_that_is_damaged_is_passed_over(
    tmp_path: Path, bad_losses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.at(tmp_path / "run")
    killed_at(CONFIG, folder, 14, monkeypatch)
    (name,) = [info.base_name for info in (folder / "checkpoints").list() if "000000008-" in info.base_name]
    (folder / "checkpoints").write_bytes(name, b"damaged")
    run_format_experiment(CONFIG, folder)
    assert rollbacks(folder)[1] == (15, 4, "checkpoint")


def test_without_a_healthy_checkpoint_it_stays_with_memory_and_a_checkpoint_of_before_this_is_read(
    tmp_path: Path, bad_losses: None
) -> None:
    folder = run_format_experiment(CONFIG.altered(checkpoint_interval=100), tmp_path / "none").folder
    assert rollbacks(folder) == [(13, 12, "memory"), (15, 12, "memory"), (17, 12, "memory")]
    trainer = Trainer(CONFIG)
    state = trainer.state_dict()
    del state["interventions"][1]["climb"]
    Trainer(CONFIG).load_state_dict(state)
