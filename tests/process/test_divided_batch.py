"""What of a batch is divided: what a task says, what is certain, and a question where neither tells it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL

ROWS = 8


class Weighted(nn.Module):
    """A cross-entropy with a weight of each class, of which there are as many as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, ROWS)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return (nn.functional.cross_entropy(self.linear(x), y, reduction="none") * weights[y]).mean()


class Labels:
    """Batches with a table that is no row; the labels are so small that a cut table would be read, too."""

    vocabulary = None

    def __init__(self, whole: Any = None, as_dict: bool = False, table: Tensor | None = None) -> None:
        if whole is not None:
            self.whole = whole
        self.as_dict, self.table = as_dict, torch.arange(1.0, ROWS + 1) if table is None else table

    def training(self, step: int) -> Any:
        drawn = torch.Generator().manual_seed(step)
        x, y = torch.randn(ROWS, 4, generator=drawn), torch.randint(ROWS // 4, (ROWS,), generator=drawn)
        return {"x": x, "y": y, "weights": self.table} if self.as_dict else (x, y, self.table)

    def validation(self) -> list[Any]:
        return []

    def digest(self) -> str:
        return ""


def gradient(batches: Any, pieces: int, model: nn.Module | None = None) -> Tensor:
    config = SMALL.altered(format="FP32", batch_size=ROWS, accumulate=pieces, gradient_clip=0)
    torch.manual_seed(0)
    trainer = Trainer(config, Weighted() if model is None else model, batches)
    trainer.step()
    found = trainer.model.linear.weight.grad
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_table_that_is_said_to_be_whole_is_not_cut(as_dict: bool) -> None:
    batches = Labels(("weights",) if as_dict else (2,), as_dict)
    expected = gradient(batches, 1)
    for pieces in (2, 4):
        torch.testing.assert_close(gradient(batches, pieces), expected)
    with pytest.raises(IndexError):
        gradient(Labels((), as_dict), 8)  # divided, the table has one entry in each part


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_table_of_which_nothing_is_said_is_asked_for_in_one_line(as_dict: bool) -> None:
    name = "'weights'" if as_dict else "2"
    with pytest.raises(ConfigError, match=rf"entry {name} of the batch has as many .* whole = \({name},\)") as caught:
        gradient(Labels(None, as_dict), 2)
    assert "\n" not in str(caught.value)
    gradient(Labels(None, as_dict), 1)  # nothing is divided
    gradient(Labels(None, table=torch.ones(ROWS)), 2)  # the same for every row: divided or not, it says the same
    gradient(Labels(None, table=torch.arange(1.0, ROWS + 2)), 2)  # of another length


def test_a_wrong_name_is_refused() -> None:
    for whole, as_dict in (("table",), True), ((3,), False):
        with pytest.raises(ConfigError, match=r"is no entry of the batch \((x, y, weights|0, 1, 2)\)"):
            gradient(Labels(whole, as_dict), 2)


class Task:
    """Sequences of different lengths: the loss is the mean over the tokens that are not ignored."""

    unit = "nats"

    def __init__(self, weighs: bool = True, kind: str = "function") -> None:
        self.kind = kind
        if not weighs:
            self.weight = None

    def model(self, config: TrainConfig) -> nn.Module:
        model = nn.Module()
        model.linear = nn.Linear(4, 3)
        return model

    def loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model.linear(x).flatten(0, 1), y.flatten(), ignore_index=-1)

    def weight(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (batch[1] >= 0).sum()

    def data(self, config: TrainConfig, split: str) -> Any:
        drawn = np.random.default_rng(0)
        x = torch.tensor(drawn.normal(size=(4 * ROWS, 6, 4)), dtype=torch.float32)
        y = torch.tensor(drawn.integers(3, size=(4 * ROWS, 6)))
        lengths = torch.tensor(drawn.integers(1, 7, size=4 * ROWS))
        lengths[ROWS : ROWS + 2] = 0  # of two sequences that fall into one part all tokens are ignored
        y[torch.arange(6) >= lengths[:, None]] = -1
        if self.kind == "function":
            rows = slice(ROWS, 2 * ROWS)
            return (lambda step: (x[rows], y[rows])) if split == "training" else None
        data = TensorDataset(x, y)
        return data if self.kind == "dataset" else DataLoader(data, batch_size=ROWS)


def trained(pieces: int, **arguments: Any) -> tuple[Tensor, float, float | None]:
    config = SMALL.altered(
        format="FP32", batch_size=ROWS, accumulate=pieces, gradient_clip=0, task=f"{__name__}:Task",
        task_args=arguments, eval_batches=3, use_shadow=True, diagnostic_interval=1,
    )  # fmt: skip
    trainer = Trainer(config)
    outcome = trainer.step()
    found = trainer.model.linear.weight.grad
    assert isinstance(found, Tensor)
    assert outcome.record["gradient_cosine_similarity"] == pytest.approx(1)
    return found, outcome.record["loss"], trainer.validation_loss()


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_parts_count_their_tokens_where_the_task_says_so(pieces: int) -> None:
    expected, loss, _ = trained(1)
    found, of_parts, _ = trained(pieces)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert of_parts == pytest.approx(loss, rel=1e-5)


def test_without_a_weight_parts_count_the_same() -> None:
    assert trained(2, weighs=False)[1] != pytest.approx(trained(1)[1], rel=1e-3)


def test_held_out_batches_count_their_tokens_too() -> None:
    task = Task(kind="loader")
    trainer = Trainer(
        SMALL.altered(format="FP32", task=f"{__name__}:Task", task_args={"kind": "loader"}, eval_batches=3)
    )
    batches = trainer.batches.validation()
    x, y = (torch.cat([batch[place] for batch in batches]) for place in (0, 1))
    with torch.no_grad():
        assert trainer.validation_loss() == pytest.approx(task.loss(trainer.model, (x, y)).item(), rel=1e-5)


def test_stacked_items_have_nothing_but_rows_and_a_wrong_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(2, kind="dataset")
    for wrong, said in (
        (-1, "gave -1"),
        (float("nan"), "gave nan"),
        ("many", "gave 'many'"),
        (0, "is 0 for all 2 parts"),
    ):
        monkeypatch.setattr(Task, "weight", lambda self, batch, wrong=wrong: wrong)
        with pytest.raises(ConfigError, match=said):
            trained(2)
