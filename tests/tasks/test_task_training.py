"""A task of somebody else through our trainer: the numbers of a plain torch loop, and the same ones after a restart."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from altgrad.config.train_config import ConfigError
from altgrad.results import Run, read_run
from altgrad.training import TrainConfig, run_format_experiment
from altgrad.training.task.found_task import find_task
from altgrad.training.task.loss_value import read_loss
from altgrad.training.task.task_batches import TaskBatches
from altgrad.training.trainer import Trainer
from tests.support.runs.own_tasks import CLASSES, Products, Quadrants, batch_of_products, examples
from tests.support.runs.small_runs import SMALL, losses

OWN = "tests.support.runs.own_tasks:{}".format
PRODUCTS = SMALL.altered(task=OWN("products"), batch_size=12, learning_rate=0.05, schedule="constant", warmup_steps=0)
QUADRANTS = SMALL.altered(task=OWN("Quadrants"), batch_size=12, learning_rate=0.01, eval_batches=4)


def test_a_run_in_fp32_is_bit_for_bit_a_plain_loop_with_the_task_s_optimizer():
    config = PRODUCTS.altered(format="FP32", gradient_clip=0.0)
    trainer = Trainer(config)
    found = [trainer.step().record for _ in range(config.max_steps)]

    torch.manual_seed(config.seed)
    model = Products().model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, record in enumerate(found, start=1):
        batch = batch_of_products(step)
        loss = nn.functional.mse_loss(model(batch["inputs"]), batch["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert record["loss"] == loss.item()
    assert "validation_loss" not in found[-1]  # nothing is held out: absent, and no NaN


@pytest.mark.parametrize("kind", ["dataset", "loader", "function"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = QUADRANTS.altered(format="E4M3", rounding="stochastic", task_args={"width": 12})
    if kind != "dataset":
        data = {"loader": loader_of, "function": function_of}[kind]
        monkeypatch.setattr(Quadrants, "data", lambda self, config, split: data(split))
    straight = read_run(run_format_experiment(config, tmp_path / "straight").folder)

    real, killed = Trainer.step, []

    def step(self: Trainer) -> Any:
        if self.step_number == 8 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run_format_experiment(config, tmp_path / "killed")
    again = read_run(run_format_experiment(config, tmp_path / "killed").folder)
    assert again.info["attempt"] == 1 and losses(again) == losses(straight)
    assert len(own_metrics(straight)) == config.max_steps and own_metrics(again) == own_metrics(straight)


def own_metrics(run: Run) -> list[Any]:
    return [row for row in run.table("own").select(["step", "name", "value"]).to_pylist() if row["name"] == "accuracy"]


def loader_of(split: str) -> DataLoader[Any]:
    data = TensorDataset(*examples(96, 0 if split == "training" else 1))
    return DataLoader(data, batch_size=12, shuffle=split == "training")


def function_of(split: str) -> Any:
    """Draws from the global generator, which is seeded by the step."""
    return lambda step: (inputs := torch.randn(12, 8), (inputs[:, 0] > 0).long())


def test_accumulated_parts_train_like_the_whole_batch():
    """Equal but for the order of float32 sums; each part draws masks of its own, so no dropout here."""
    whole, parts = (
        Trainer(PRODUCTS.altered(format="FP32", accumulate=pieces, learning_rate=0.01)) for pieces in (1, 3)
    )
    for _ in range(6):
        one, other = whole.step().record, parts.step().record
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
        assert other["tokens"] == one["tokens"]


def test_own_metrics_are_means_over_parts_and_held_out_rows():
    trainer = Trainer(QUADRANTS.altered(format="FP32", accumulate=2))
    own = trainer.step().own
    assert set(own) == {"accuracy"} and own["accuracy"] * 12 == pytest.approx(round(own["accuracy"] * 12), abs=1e-4)
    _, held_out = trainer.validation() or (0, {})
    trainer.model.eval()
    inputs, targets = examples(96, 1)
    chosen = [int(place) for place in torch.linspace(0, 95, 48, dtype=torch.float64)]
    right = trainer.model(inputs[chosen]).argmax(-1) == targets[chosen]
    assert held_out["validation_accuracy"] == pytest.approx(right.float().mean().item())


def test_an_epoch_of_a_dataset_has_every_item_once():
    data = TensorDataset(torch.arange(40))
    batches = TaskBatches(QUADRANTS.altered(batch_size=12), data, None, None, "task")
    seen = [item for step in range(1, 11) for item in batches.training(step)[0].tolist()]
    for epoch in range(3):
        assert sorted(seen[epoch * 40 : (epoch + 1) * 40]) == list(range(40))
    assert seen[:40] != seen[40:80] and torch.equal(batches.training(7)[0], batches.training(7)[0])
    assert batches.validation() == []


@pytest.mark.parametrize("loader", [{"shuffle": True}, {"shuffle": True, "generator": torch.Generator()}, {}])
def test_a_loader_s_batches_are_found_by_their_number(loader: dict[str, Any]):
    def batches() -> TaskBatches:
        data = DataLoader(TensorDataset(torch.arange(40)), batch_size=8, **loader)
        return TaskBatches(QUADRANTS, data, None, None, "task")

    straight = [batches().training(step)[0].tolist() for step in range(1, 11)]
    one = batches()
    assert [one.training(step)[0].tolist() for step in (10, 3, 7)] == [straight[n - 1] for n in (10, 3, 7)]
    for epoch in (straight[:5], straight[5:]):
        assert sorted(item for batch in epoch for item in batch) == list(range(40))
    assert (straight[:5] != straight[5:]) == bool(loader)


LOSS = torch.tensor(2.0, requires_grad=True)


class Output:
    """As transformers' models return it."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.logits = loss, torch.zeros(2, 3)


class MappingOutput(OrderedDict[str, Any]):
    """As older models return it: a dict that is empty, with the loss as an attribute."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss


@pytest.mark.parametrize(
    "found",
    [LOSS, (torch.zeros(2, 3), LOSS), Output(LOSS), {"loss": LOSS}, MappingOutput(LOSS)],
)
def test_a_loss_is_taken_from_whatever_models_return(found: Any):
    assert read_loss(found)[0] is LOSS
    with torch.no_grad():  # of a held-out batch no gradient is wanted
        assert read_loss(LOSS.detach())[0] == 2.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "nosuch.module:task"}, "no module 'nosuch' here"),
        ({"task": OWN("products_")}, "did you mean 'products'?"),
        ({"task": OWN("products"), "task_args": {"a": 1}}, "is an object and takes no arguments (a)"),
        ({"task": OWN("Quadrants"), "task_args": {"wdth": 1}}, "it takes width, count"),
        ({"task": OWN("CLASSES")}, "is an int; give a task"),
        ({"task": "regresion"}, "did you mean 'regression'?"),
        ({"task_args": {"a": 1}}, "task=gpt: takes no arguments (a)"),
        (
            {"task": "torch.nn:Linear", "task_args": {"in_features": 1, "out_features": 1}},
            "Linear has no method 'model'",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_in_one_line(fields: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        find_task(TrainConfig(**fields))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": lambda self, config: 3}, "the data have the class 3, but classes=3"),
        (
            {"data": lambda self, config, split: lambda step: (1, {"x": object()})},
            "a batch has an object at [1]['x']; give",
        ),
        ({"data": lambda self, config, split: lambda step: None}, "a batch has no tensor (found NoneType)"),
        ({"data": lambda self, config, split: None}, "data(config, 'training') gave None"),
        ({"data": lambda self, config, split: 7}, "gave an int; give a function of the step"),
        ({"model": lambda self, config: 7}, "model(config) gave an int; give a torch.nn.Module"),
        ({"loss": lambda self, model, batch: model(batch[0])}, "the loss has the shape (12, 4)"),
        ({"loss": lambda self, model, batch: (torch.zeros(2), torch.zeros(3))}, "2 values with 0 losses"),
        ({"loss": lambda self, model, batch: (model(batch[0]).sum(), {"loss": 1})}, "the metric 'loss'"),
    ],
)
def test_what_a_task_gives_is_checked_where_it_enters(change: Any, said: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in change.items():
        monkeypatch.setattr(Quadrants, name, value)
    with pytest.raises((ConfigError, TypeError)) as caught:
        trainer = Trainer(QUADRANTS)
        trainer.batches.digest()
        trainer.step()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_classes_are_those_of_the_collapse_rules():
    assert Trainer(QUADRANTS).batches.vocabulary == CLASSES
    assert Trainer(PRODUCTS).batches.vocabulary is None and Trainer(PRODUCTS).loss_unit == "squared error"


def test_the_task_of_the_documentation_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = next(code for code in programs if code.startswith("# two_moons.py"))
    (tmp_path / "two_moons.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    trainer = Trainer(QUADRANTS.altered(task="two_moons:TwoMoons", max_steps=200, learning_rate=0.02, batch_size=50))
    outcomes = [trainer.step() for _ in range(200)]
    assert outcomes[-1].own["validation_accuracy"] > 0.95 and outcomes[-1].record["validation_loss"] < 0.2
    assert trainer.task.is_from_here and trainer.batches.vocabulary == 2
