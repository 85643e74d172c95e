"""A field of the config that a task does not read is refused where it is given, before anything starts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.training.task import unread_fields
from altgrad.training.task.unread_fields import FIELDS, check_all_read
from tests.support.commands import altgrad
from tests.support.runs import own_tasks

GIVEN: dict[str, Any] = {  # another value of each field that only a task reads
    "model": "micro", "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "tied_head": True, "data": "gone.txt",
    "tokenizer": "gpt2", "text_column": "body", "token_dtype": "uint16", "validation_fraction": 0.2, "batch_size": 4,
    "weight_decay": 0.2, "beta1": 0.8, "beta2": 0.9, "adam_epsilon": 1e-6,
}  # fmt: skip
ADAMW = {"weight_decay", "beta1", "beta2", "adam_epsilon"}


class Points(nn.Linear):
    """A model that keeps the config, and reads a field of it when it is called."""

    def __init__(self, config: TrainConfig, field: str | None) -> None:
        super().__init__(2, 1)
        self.config, self.field = config, field

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.field is not None:
            getattr(self.config, self.field)
        return super().forward(x).square().mean()


class Mine:
    """A task that reads one field, in one place, or none."""

    unit = ""

    def __init__(self, reads: str | None = None, where: str | None = None, kind: str = "function") -> None:
        self.reads, self.where, self.kind = reads, where, kind

    def _read(self, where: str, config: TrainConfig) -> None:
        if where == self.where and self.reads is not None:
            getattr(config.shape if self.reads in ("n_layer", "block_size") else config, self.reads)

    def model(self, config: TrainConfig) -> nn.Module:
        self._read("model", config)
        return Points(config, self.reads if self.where == "forward" else None)

    def data(self, config: TrainConfig, split: str) -> Any:
        self._read("data", config)
        if self.kind == "dataset":
            return TensorDataset(torch.ones(20, 2))
        if self.kind == "loader":
            return DataLoader(TensorDataset(torch.ones(20, 2)), batch_size=5)

        def batch(step: int) -> torch.Tensor:
            self._read("batch", config)
            return torch.ones(6, 2)

        return batch

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        self._read("optimizer", config)
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate)


def checked(fields: dict[str, Any], **arguments: Any) -> str | None:
    """What is said of a config of the task `Mine`; None: nothing."""
    try:
        check_all_read(TrainConfig(task=f"{__name__}:Mine", task_args=arguments, **fields))
    except ConfigError as error:
        return str(error)
    return None


def test_every_field_that_a_task_alone_reads_is_tried() -> None:
    assert GIVEN.keys() == FIELDS
    default = TrainConfig()
    assert all(getattr(default, name) != value for name, value in GIVEN.items())


@pytest.mark.parametrize("field", GIVEN)
def test_a_field_that_nobody_reads_is_refused_in_one_line(field: str) -> None:
    said = checked({field: GIVEN[field]})
    assert said is not None and said.startswith(f"{field}=") and "does not read it" in said and "\n" not in said
    assert "leave it out" in said


@pytest.mark.parametrize("where", ["model", "data", "batch", "optimizer", "forward"])
@pytest.mark.parametrize("field", [name for name in GIVEN if name not in ("n_head", "n_embd")])
def test_a_field_that_is_read_anywhere_is_not(field: str, where: str) -> None:
    assert checked({field: GIVEN[field]}, reads=field, where=where) is None
    other = "n_head" if field != "tokenizer" else "tied_head"
    said = checked({field: GIVEN[field], other: GIVEN[other]}, reads=field, where=where)
    assert said is not None and said.startswith(f"{other}="), "the other field is still unread"


def test_a_size_that_the_preset_gives_reads_the_preset() -> None:
    assert checked({"model": "micro"}, reads="block_size", where="data") is None
    said = checked({"n_embd": 32, "n_layer": 1}, reads="block_size", where="data")
    assert said is not None and "n_layer=1, n_embd=32: task" in said and "does not read them; leave them out" in said
    assert "--task-arg: reads, where, kind" in said


def test_the_size_of_a_batch_counts_where_the_batches_have_it() -> None:
    assert checked({"batch_size": 4}, kind="dataset") is None  # a Dataset is cut into batches of this size
    said = checked({"batch_size": 4}, kind="loader")
    assert said is not None and "its batches have 5 rows" in said
    assert checked({"batch_size": 5}, kind="loader") is None


@pytest.mark.parametrize("task", ["regression", "mx_proxy", "image_classifier", "nanogpt"])
def test_the_shipped_tasks_are_told_what_they_do_not_read(task: str) -> None:
    if task == "image_classifier":
        pytest.importorskip("sklearn")
    arguments = {"depth": 1, "width": 32} if task in ("regression", "mx_proxy") else {}
    unread = {"n_layer", "tied_head"} if task != "nanogpt" else {"tied_head"}
    for name in ("n_layer", "tied_head", "batch_size", *ADAMW):
        config = TrainConfig(task=task, task_args=arguments, model="micro" if task == "nanogpt" else "tiny")
        config = config.altered(**{name: GIVEN[name]})
        if name in unread:
            with pytest.raises(ConfigError, match=rf"^{name}=.*task {task} does not read it"):
                check_all_read(config)
        else:
            check_all_read(config)


def test_a_task_that_fails_is_left_to_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_fields, "find_task", lambda config: 1 / 0)
    assert checked({"n_layer": 1}) is None


def test_the_commands_refuse_also_without_running(tmp_path: Path) -> None:
    (tmp_path / "task_of_mine.py").write_text(inspect.getsource(own_tasks))
    (tmp_path / "text.txt").write_text("text " * 1000)
    task = ["--task", "task_of_mine:Quadrants"]
    for words in (
        ["train", "bf16_baseline", *task, "--out", "out", "--set", "data=text.txt"],
        ["sweep", *task, "--formats", "E4M3", "--data", "text.txt", "--dry-run"],
        ["sweep", *task, "--formats", "E4M3", "--model", "micro", "--dry-run"],
        ["sweep", *task, "--formats", "E4M3", "--set", "beta1=0.8", "n_head=2", "--dry-run"],
    ):
        done = altgrad(*words, cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "does not read it" in done.stderr and "--task-arg: width, count" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "task_of_mine.py",
        "text.txt",
    ]
