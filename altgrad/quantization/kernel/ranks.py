"""One run on several processes: the only owner of torch.distributed.

The launcher of the processes joins them in a process group; the trainer then reads its rank and the number of ranks
from it.  Each rank takes its rows of every global batch.  Every number that decides about a step is equal on all ranks:
gradients are summed right after backward, counts and loss are combined in one collective, and the scale of a tensor is
chosen inside the graph from the amax of the whole batch.  K ranks therefore train the same run as one process, except
for the order in which float32 values are added.

Gradients are reduced as one flat tensor and not by torch's DistributedDataParallel, for two reasons.  The whole
backward pass is one compiled graph, so that communication could not overlap with it.  And the counts, which also leave
the graph as gradients, are not parameters, so that the wrapper would not see them.  Each rank's loss is weighted by
1/K, so that rounded gradients have the same magnitude as in one process; otherwise other values would underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from altgrad import torch_private

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, from 0, among the `size` processes that train the run."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Ranks:
        """The ranks of the default process group, or a single rank if this process has joined none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def alone(self) -> bool:
        """Whether one process trains the whole run."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes files."""
        return self.rank == 0

    def check_batch(self, rows: int) -> None:
        """Raise ValueError if a batch of `rows` does not divide into equal parts."""
        if rows % self.size:
            raise ValueError(f"batch_size={rows} does not divide among {self.size} workers; use a multiple of them")

    def weight(self, loss: Tensor) -> Tensor | None:
        """The gradient with which backward starts: 1/size, so that the ranks' gradients sum to that of the mean loss.

        None for a single rank, where backward starts with 1.
        """
        return None if self.alone else torch.full_like(loss, 1 / self.size)

    def add_up(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """(sums over ranks with the shapes and dtypes of `like`; number of ranks that had each tensor, float32).

        None stands for a parameter that this rank's rows did not reach, and counts as zero.
        """
        present, device = [float(tensor is not None) for tensor in tensors], like[0].device
        if all(present):
            there = torch.ones(
                len(present), dtype=torch.float32, device=device
            )  # a copy from the host would synchronise
        else:
            there = torch.tensor(present, dtype=torch.float32, device=device)
        parts = [torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)]
        flat = torch.cat([*(part.flatten() for part in parts), there])
        dist.all_reduce(flat)
        sums = flat.split([x.numel() for x in like] + [len(parts)])
        return [total.view(x.shape).to(x.dtype) for total, x in zip(sums, like, strict=False)], sums[-1]

    def combine(self, values: Tensor, largest: Tensor) -> Tensor:
        """Per element, the maximum over ranks if `largest` (n, bool), else the sum; the same bits on all ranks.

        values: (n,).
        """
        gathered = values.new_empty(self.size * len(values))
        dist.all_gather_single(gathered, values)
        table = gathered.view(self.size, -1)
        return torch.where(largest, table.amax(0), table.sum(0))

    def mean(self, value: Tensor) -> Tensor:
        """Mean over ranks of a 0-d tensor."""
        if self.alone:
            return value
        total = value.detach() / self.size
        dist.all_reduce(total)
        return total

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Call `make` on rank 0 alone and return its value on every rank."""
        if self.alone:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return cast("Value", box[0])

    def of_all(self, value: Value) -> list[Value]:
        """The values of all ranks, in the order of rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


def largest_over_ranks(value: Tensor, group: str = "") -> Tensor:
    """Elementwise maximum of `value` over a group of ranks, as a functional collective, which a graph can contain.

    group: the name of a process group; "": all ranks.
    """
    if not group:
        assert dist.group.WORLD is not None
        group = dist.group.WORLD.group_name
    return torch_private.largest_over_group(value, group)


def lost_another_rank(error: BaseException) -> bool:
    """Whether an exception reports the loss of another rank, whose own exception is then the reason."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
