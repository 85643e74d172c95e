"""What a start from RUN@STEP keeps besides the weights: the step, the moments and the place in the data, both, none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.branch import Branch
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.experiment.checkpoints.stored_weights import stored_start
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from altgrad.training.starting_point import load_moments
from altgrad.training.trainer import Trainer
from tests.support.commands import altgrad
from tests.support.results.collapse_curves import CAP, judge
from tests.support.runs.small_runs import SMALL, losses, set_words
from tune.plan.inputs import check_inputs
from tune.plan.options import parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trials import plan_sweep

PARENT = SMALL.altered(format="E4M3", skip_batches=3)
AT = 10
BOTH = ["moments", "step"]
MACHINE = Machine(cpus=2, gpus=0, gpu_note="no CUDA GPU found")
KEPT: list[list[Any]] = [[], ["step"], ["moments"], BOTH]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with checkpoints at the steps 10 and 12."""
    folder = tmp_path_factory.mktemp("parent") / "run"
    run_format_experiment(PARENT, folder)
    return folder


def curve(folder: Any) -> list[dict[str, Any]]:
    return list(read_run(Folder.at(folder)).table("steps", ["loss", "learning_rate", "tokens"]).to_pylist())


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_what_is_kept_goes_on_and_the_rest_begins_anew(parent: Path, kept: list[Any]) -> None:
    """The parent's own 11th step shows it: its loss the weights and batch, its rate the schedule."""
    theirs = {row["step"]: row for row in curve(parent)}
    config = PARENT.altered(start_from=f"{parent}@{AT}", start_keeps=kept, skip_batches=0 if kept else 3)
    trainer = Trainer(config, start=stored_start(config))
    record = trainer.step().record
    begin = AT if "step" in kept else 0
    assert record["step"] == begin + 1 and record["learning_rate"] == theirs[begin + 1]["learning_rate"]
    assert (record["loss"] == theirs[AT + 1]["loss"]) == bool(kept)  # the batch after the parent's, with its weights
    counts = {float(moments["step"]) for moments in trainer.optimizer.state.values()}
    assert counts == {AT + 1.0 if "moments" in kept else 1.0}
    assert record["tokens"] == (theirs[AT + 1]["tokens"] if "step" in kept else theirs[1]["tokens"])
    again = trainer.step().record["loss"]
    assert (again == theirs[AT + 2]["loss"]) == (
        kept == BOTH
    )  # new moments, or another rate, move the weights elsewhere


def test_everything_kept_repeats_the_run_and_later_starts_know_its_place_in_the_data(
    parent: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"start_from": f"{parent}@last", "max_steps": 12}
    with pytest.raises(ConfigError, match="no step is left"):
        run_format_experiment(PARENT.altered(start_keeps=["step"], **fields), tmp_path / "over")
    assert not (tmp_path / "over").exists()
    fields = {"start_from": f"{parent}@{AT}", "max_steps": 12, "skip_batches": 0}
    run_format_experiment(PARENT.altered(start_keeps=BOTH, **fields), tmp_path / "whole")
    assert curve(tmp_path / "whole") == curve(parent)[AT:]
    ahead = PARENT.altered(start_keeps=["moments"], checkpoint_interval=1, keep_checkpoints="all", **fields)
    run_format_experiment(ahead, tmp_path / "ahead")
    config = PARENT.altered(start_from=f"{tmp_path / 'ahead'}@4", start_keeps=["step"], skip_batches=0)
    start = stored_start(config)
    assert start is not None and (start.step, start.ahead) == (4, AT + 3)
    branch = Branch(str(tmp_path / "ahead"), 4)  # a run that began with given weights can be branched
    run_format_experiment(None, tmp_path / "branch", branch=branch)
    theirs = losses(read_run(Folder.at(tmp_path / "ahead")))
    assert losses(read_run(Folder.at(tmp_path / "branch"))) == theirs[4:]
    with pytest.raises(ConfigError, match=r"start_from=.*: a branch of .* weights, moments and place in the data"):
        Branch(str(tmp_path / "ahead"), 4, start_from="elsewhere@3").config()


def test_a_run_names_the_checkpoint_that_last_meant(parent: Path, tmp_path: Path) -> None:
    config = PARENT.altered(start_from=f"{parent}@last", max_steps=14, start_keeps=["step"])
    run_format_experiment(config, tmp_path / "run")
    assert read_run(Folder.at(tmp_path / "run")).config["start_from"] == f"{parent}@12"
    assert [row["step"] for row in curve(tmp_path / "run")] == [13, 14]


def test_what_cannot_be_kept_is_one_line(parent: Path, tmp_path: Path) -> None:
    for source in (None, str(parent), "weights.safetensors", "folder@v2"):
        with pytest.raises(ConfigError) as caught:
            PARENT.altered(start_from=source, start_keeps=["moments"])
        assert "only a checkpoint of a run" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="start_keeps"):
        PARENT.altered(start_from=f"{parent}@10", start_keeps=["histories"])
    start = stored_start(PARENT.altered(start_from=f"{parent}@10", start_keeps=["moments"]))
    assert start is not None and start.optimizer is not None
    model = Trainer(PARENT).model
    for optimizer in (torch.optim.SGD(model.parameters(), 0.1), torch.optim.AdamW(model.parameters())):
        with pytest.raises(ConfigError, match="leave moments out"):
            load_moments(optimizer, start.optimizer)


def test_the_rule_of_learning_counts_from_the_step_that_is_kept() -> None:
    """40 % of 400 steps after step 600 is step 760; at the loss of a uniform model, the run has not learned by then."""
    config = TrainConfig(max_steps=1000, start_from="run@600", start_keeps=["step"])
    verdict = judge([{"step": step, "loss": CAP} for step in range(601, 1001)], config)
    assert verdict is not None and (verdict.rule, verdict.step) == ("never_learned", 760)


def test_both_commands_take_what_is_kept(parent: Path, tmp_path: Path) -> None:
    small = ["--set", *set_words(max_steps=11, n_layer=1, compile=False, batch_size=4, eval_batches=1)]
    words = ["--from", f"{parent}@{AT}", "--keep", "step", "moments"]
    plan = plan_sweep(parse_options([*words, "--formats", "E4M3", "--model", "micro", *small]), MACHINE)
    assert {(one.config.start_from, *one.config.start_keeps) for one in plan.trials} == {(f"{parent}@{AT}", *BOTH)}
    assert len(plan.trials) == 2 and check_inputs(plan.trials, MACHINE)
    done = altgrad("train", "bf16_baseline", *words, "--out", "out", *small, "model=micro", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in curve(tmp_path / "out")] == [11]
    done = altgrad("train", "bf16_baseline", "--keep", "step", "--out", "no", *small, cwd=tmp_path)
    assert done.returncode == 2 and "start_keeps=['step'] with start_from=None" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "no").exists()
