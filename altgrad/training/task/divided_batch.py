"""How a batch is divided among ranks and micro-batches: which of its tensors have rows, and what each part counts.

As everywhere (torch's `DataParallel`, the slices of accelerate), a tensor whose first dimension has the length of the
batch has a row for each example.  A table of that length by chance has none, and nothing in it says so; a task says it
(`Task.whole`).  One that says nothing is asked where two batches show such a tensor: the same numbers in both, although
the examples are others.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.config.train_config import ConfigError
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.text.error_hints import cut, shown
from altgrad.training.data import Batches
from altgrad.training.held_out import mean_of
from altgrad.training.step.step_random import StepRandom
from altgrad.training.task.batch import Batch, as_batch, count, has_rows, part, rows, tensors, without
from altgrad.training.task.found_task import FoundTask


class DividedBatch:
    """A step's batch in parts.

    parts: those of this rank.  shares: what each counts in the mean loss of all ranks' parts; None: all the same.
    tokens: of the whole batch, see `count`.
    """

    def __init__(self, batch: Batch, task: FoundTask, whole: Collection[str | int], ranks: Ranks, pieces: int) -> None:
        check_named(batch, whole, task.said)
        self.tokens = count(without(batch, whole))
        every, first = ranks.size * pieces, ranks.rank * pieces
        self.parts = [part(batch, first + number, every, whole) for number in range(pieces)]
        self.shares: list[float] | None = None
        if task.weighs and every > 1:
            weights = [task.weight(part(batch, number, every, whole)) for number in range(every)]
            total = sum(weights)
            if not total:
                raise ConfigError(f"{task.said}: weight(batch) is 0 for all {every} parts of a batch")
            self.shares = [weight / total for weight in weights[first : first + pieces]]

    def gradient(self, loss: Tensor, number: int, ranks: Ranks) -> Tensor | None:
        """The gradient with which the backward pass of a part's loss starts; None: 1."""
        if self.shares is not None:
            return torch.full_like(loss, self.shares[number])
        weight = ranks.weight(loss)
        if len(self.parts) > 1:
            weight = (torch.ones_like(loss) if weight is None else weight) / len(self.parts)
        return weight

    def mean(self, losses: Sequence[Tensor], ranks: Ranks) -> Tensor:
        """The loss of this rank (0-d), whose mean over ranks is the loss of the batch."""
        if self.shares is None:
            return losses[0] if len(losses) == 1 else mean_of(losses)
        together = torch.stack(list(losses))
        together = together.to(torch.promote_types(together.dtype, torch.float32))
        shares = torch.stack([torch.full_like(together[0], share) for share in self.shares])  # a copy would synchronise
        return torch.where(shares == 0, 0.0, together * shares).sum() * ranks.size  # the loss of no token is no number


def whole_of(batches: Batches) -> Collection[str | int]:
    """Entries of the batches that are not divided, as far as they say it."""
    found: Collection[str | int] | None = getattr(batches, "whole", None)
    return () if found is None else found


def check_named(batch: Batch, whole: Collection[str | int], whose: str) -> None:
    """Raise ConfigError if an entry that is to stay whole is none of the batch's."""
    there: Collection[Any] = (
        list(batch) if isinstance(batch, dict) else range(len(batch) if isinstance(batch, tuple) else 1)
    )
    missing = [name for name in whole if name not in there]
    if missing:
        names = cut(", ".join(map(str, there)))
        raise ConfigError(f"{whose}: whole names {shown(missing[0])}, which is no entry of the batch ({names})")


def check_division(batches: Batches, whose: str, seed: int) -> None:
    """Raise ConfigError if it cannot be told whether a tensor of the batches has rows, and the task does not say it."""
    if getattr(batches, "whole", None) is not None:
        return
    random, found = StepRandom(torch.device("cpu")), []
    with random.borrowed():
        for step in (1, 2):
            random.seed("batch", seed, step)
            found.append(as_batch(batches.training(step), whose))
    first, second = found
    length = rows(first)
    if length < 2 or all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=False)):
        return  # the same batch at every step: nothing can be seen
    others = zip(_named(first), _named(second), strict=False)
    for (name, one), (_, other) in itertools.islice(others, 1, None):  # the first has rows in any case
        if has_rows(one, length) and torch.equal(one, other) and not torch.equal(one, one[:1].expand_as(one)):
            raise ConfigError(
                f"{whose}: entry {name} of the batch has as many values as the batch has rows ({length}), and the same "
                f"in batches 1 and 2; say whether it is divided: whole = ({name},) in the task if every part gets all "
                "of it, else whole = ()"
            )


def _named(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """(name of the entry at the top, tensor) for each tensor."""
    entries = (
        batch.items() if isinstance(batch, dict) else enumerate(batch) if isinstance(batch, tuple) else [(0, batch)]
    )
    for key, value in entries:
        for tensor in tensors(value):
            yield shown(key), tensor
