"""Data and modules as others have them: what is taken, and one line for what is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from altgrad.config.train_config import ConfigError
from altgrad.training.task.found_task import find_task
from altgrad.training.task.task_batches import TaskBatches
from tests.support.runs.small_runs import SMALL

CONFIG = SMALL.altered(eval_batches=10)


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(self.length))


def batches(training: Any, validation: Any = None) -> TaskBatches:
    return TaskBatches(CONFIG, training, validation, None, "task mine")


def test_a_third_entry_of_a_batch_is_not_taken_for_the_classes() -> None:
    found = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]), torch.tensor([9, 7, 3, 1])  # inputs, classes, lengths
    assert TaskBatches(CONFIG, lambda step: found, None, 2, "task mine").training(1) == found
    with pytest.raises(ConfigError, match="the data have the class 9, but classes=2"):
        TaskBatches(CONFIG, lambda step: (found[0], found[2]), None, 2, "task mine").training(1)


@pytest.mark.parametrize("empty", [Stream(0), TensorDataset(torch.zeros(0))], ids=["stream", "items"])
def test_a_loader_without_a_batch_is_refused_by_the_task_s_name(empty: Any) -> None:
    loader: DataLoader[Any] = DataLoader(empty, batch_size=2)
    with pytest.raises(ConfigError, match=r"^task mine: the DataLoader of 'training' yields no batch"):
        batches(loader).training(1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class task:\n    def __init__(self, **words): raise RuntimeError('no card')\n", "RuntimeError: no card"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n", "ended the process (exit code 2)"),
    ],
)
def test_a_task_that_cannot_be_made_is_one_line(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cannot_be_made.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cannot_be_made", raising=False)
    with pytest.raises(ConfigError) as caught:
        find_task(CONFIG.altered(task="cannot_be_made:task", task_args={"wide": 3}))
    assert said in str(caught.value) and "\n" not in str(caught.value)
