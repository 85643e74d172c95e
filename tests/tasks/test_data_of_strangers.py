"""Data and modules as others have them: loaders of uneven epochs, streams that end, metrics that some batches lack."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from altgrad.config.train_config import ConfigError
from altgrad.training.held_out import HeldOutMean
from altgrad.training.task.found_task import find_task
from altgrad.training.task.task_batches import TaskBatches
from tests.support.runs.small_runs import SMALL

CONFIG = SMALL.altered(eval_batches=10)


class Uneven:
    """A batch sampler that cuts each epoch into batches of lengths that chance gives, as samplers by length do."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        chance, items = random.Random(self.epoch), list(range(40))
        chance.shuffle(items)
        while items:
            length = chance.randint(1, 9)
            yield items[:length]
            items = items[length:]


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(self.length))


def batches(training: Any, validation: Any = None) -> TaskBatches:
    return TaskBatches(CONFIG, training, validation, None, "task mine")


def test_epochs_of_different_numbers_of_batches_follow_each_other_also_after_a_restart() -> None:
    def uneven() -> TaskBatches:
        return batches(DataLoader(TensorDataset(torch.arange(40)), batch_sampler=Uneven()))

    expected, sampler = [], Uneven()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert len({len(list(sampler)) for epoch in range(4) if not sampler.set_epoch(epoch)}) > 1
    one = uneven()
    assert [one.training(step)[0].tolist() for step in range(1, len(expected) + 1)] == expected
    for step in (len(expected), 2, 15, 7):
        assert uneven().training(step)[0].tolist() == one.training(step)[0].tolist() == expected[step - 1]


def test_a_held_out_stream_is_read_once_and_a_training_stream_again() -> None:
    both = batches(DataLoader(Stream(5), batch_size=2), DataLoader(Stream(5), batch_size=2))
    held_out = [[0, 1], [2, 3], [4]]
    for _ in range(2):
        assert [batch.tolist() for batch in both.validation()] == held_out
    assert [both.training(step).tolist() for step in range(1, 8)] == [*held_out, *held_out, [0, 1]]


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


def test_the_held_out_mean_of_a_metric_is_over_the_batches_that_have_it() -> None:
    mean = HeldOutMean(torch.device("cpu"))
    mean.add(torch.tensor(1.0), {"always": torch.tensor(2.0)}, 3)
    mean.add(torch.tensor(2.0), {"always": torch.tensor(4.0), "seldom": torch.tensor(7.0)}, 1)
    assert mean.read() == (1.25, {"validation_always": 2.5, "validation_seldom": 7.0})


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
