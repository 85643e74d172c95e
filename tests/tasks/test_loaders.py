"""Batches of loaders whose epochs differ in length, of streams, and means over held-out batches of any dtype."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from altgrad.config.train_config import ConfigError
from altgrad.training.held_out import HeldOutMean, mean_of
from altgrad.training.task.batch import count
from altgrad.training.task.task_batches import TaskBatches
from tests.support.runs.small_runs import SMALL

HERE = torch.device("cpu")


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.tensor([float(place)])


class Buckets:
    """A sampler with batches of 2, 3, 4, 2, ... items, so with 5, 4, 3, 5, ... batches per epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        size = 2 + self.epoch % 3
        yield from (list(range(start, min(10, start + size))) for start in range(0, 10, size))


class Stream(IterableDataset[torch.Tensor]):
    """Ten items; `noisy`: each with numbers of torch's, numpy's and Python's generators."""

    def __init__(self, items: int = 10, noisy: bool = False) -> None:
        self.items, self.noisy = items, noisy

    def __iter__(self) -> Iterator[torch.Tensor]:
        for item in range(self.items):
            noise = [float(torch.rand(())), float(np.random.rand()), random.random()] if self.noisy else []
            yield torch.tensor([float(item), *noise])


def batches(training: object, validation: object = None, eval_batches: int = 8) -> TaskBatches:
    return TaskBatches(SMALL.altered(batch_size=4, eval_batches=eval_batches), training, validation, None, "a task")


def test_a_batch_depends_on_its_number_alone_if_epochs_differ_in_length() -> None:
    def found() -> TaskBatches:
        return batches(DataLoader(Numbers(), batch_sampler=Buckets()))  # type: ignore[arg-type]

    everything = found()
    whole = [everything.training(step).flatten().tolist() for step in range(1, 25)]
    assert [len(batch) for batch in whole[:12]] == [2] * 5 + [3, 3, 3, 1] + [4, 4, 2]
    for number in range(5, 25):
        assert found().training(number).flatten().tolist() == whole[number - 1], f"resumed at {number}"
    backwards = found()
    assert [backwards.training(step).flatten().tolist() for step in range(24, 0, -1)] == whole[::-1]


def test_held_out_batches_of_a_stream_count_once_at_every_evaluation() -> None:
    data = batches(DataLoader(Stream(), batch_size=4), DataLoader(Stream(), batch_size=4))
    for _ in range(3):
        assert [batch[:, 0].tolist() for batch in data.validation()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches(DataLoader(Stream()), DataLoader(Stream()), eval_batches=2).validation()) == 2
    assert [data.training(step)[0, 0].item() for step in range(1, 6)] == [0, 4, 8, 0, 4]


def test_a_stream_that_draws_numbers_gives_the_same_after_a_restart() -> None:
    def found() -> TaskBatches:
        return batches(DataLoader(Stream(noisy=True), batch_size=4))

    everything = found()
    whole = [everything.training(step) for step in range(1, 9)]
    assert len({batch[0, 1].item() for batch in whole}) == 8
    for step in (2, 5, 8):
        torch.manual_seed(step)
        assert torch.equal(found().training(step), whole[step - 1])
    before = torch.get_rng_state()
    found().training(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_without_a_batch_is_an_error_and_no_endless_loop() -> None:
    empty = DataLoader(Stream(items=3), batch_size=4, drop_last=True)
    with pytest.raises(ConfigError, match="yields no batch"):
        batches(empty).training(1)
    assert batches(DataLoader(Stream()), empty).validation() == []


def test_a_held_out_mean_is_that_of_float64_whatever_the_dtype_of_the_losses() -> None:
    mean = HeldOutMean(HERE)
    for _ in range(2):
        mean.add(torch.tensor(600.0, dtype=torch.float16), {}, 128)  # 76,800 is beyond FP16
    assert mean.read() == (600.0, {})
    losses, rows = [2.3125, 2.328125, 2.296875], [3, 5, 7]
    mean = HeldOutMean(HERE)
    for loss, number in zip(losses, rows, strict=True):
        mean.add(torch.tensor(loss, dtype=torch.bfloat16), {}, number)
    found = mean.read()
    assert found is not None and found[0] == pytest.approx(np.average(losses, weights=rows), rel=1e-6)
    parts = [torch.tensor(loss, dtype=torch.bfloat16) for loss in losses[:2]]
    assert mean_of(parts).item() == 2.3203125
    double = [torch.tensor(1 + 2.0**-40, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)]
    assert mean_of(double).item() == 1 + 2.0**-41


def test_a_metric_of_some_held_out_batches_is_their_mean() -> None:
    mean = HeldOutMean(HERE)
    mean.add(torch.tensor(1.0), {"hits": torch.tensor(0.5), "all": torch.tensor(3)}, 2)
    mean.add(torch.tensor(2.0), {"all": torch.tensor(1)}, 6)
    mean.add(torch.tensor(3.0), {"hits": torch.tensor(0.25), "all": torch.tensor(True)}, 2)
    found = mean.read()
    assert found is not None
    assert found[1] == pytest.approx({"validation_hits": 0.375, "validation_all": 1.4})


def test_pixels_and_complex_numbers_are_examples_and_whole_numbers_are_tokens() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    for first, wanted in (
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 4),
        (torch.zeros(4, 3, 8, 8), 4),
        (torch.zeros(4, 8, dtype=torch.complex64), 4),
        (torch.zeros(4, 10, dtype=torch.int64), 40),
        (torch.zeros(4, 10, dtype=torch.uint8), 40),  # bytes of a text
        (torch.zeros(4, 2, 10, dtype=torch.int32), 80),  # several choices each
    ):
        assert count((first, labels)) == wanted, first.dtype
