"""One run on several processes: the only owner of torch.distributed.

Whoever starts the processes joins them in a process group; the trainer then finds itself one of `size` ranks.  Each
rank takes its rows of every global batch, and what decides about a step is the same number on all of them: gradients
are added up right after backward, counts and loss are combined in one collective, and a scale per tensor is chosen
from the amax of the whole batch inside the graph.  So K ranks train the run of one process, but for the order in
which float32 values are added up.

Gradients travel as one flat tensor instead of through torch's DistributedDataParallel: the whole backward pass is one
compiled graph, so that there is nothing to overlap with, and its counts, which come out of it as gradients too, are no
parameters that the wrapper would see.  Each rank's loss weighs 1/K, so that the gradients that are rounded have the
magnitude they have in one process; otherwise other values would underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train the run: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Ranks:
        """The ranks of the default process group; a single one where none was joined."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0

    def check_batch(self, rows: int) -> None:
        """Raises ValueError for a batch that does not divide into equal parts."""
        if rows % self.size:
            raise ValueError(f"batch_size={rows} does not divide among {self.size} workers; use a multiple of them")

    def part(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """This rank's rows of a global batch (inputs, targets): an equal share, in order of rank."""
        if self.alone:
            return batch
        rows = len(batch[0])
        self.check_batch(rows)
        share = rows // self.size
        inputs, targets = (part[self.rank * share : (self.rank + 1) * share] for part in batch)
        return inputs, targets

    def weight(self, loss: Tensor) -> Tensor | None:
        """What backward starts from: 1/size, so that the ranks' gradients add up to that of the global mean."""
        return None if self.alone else torch.full_like(loss, 1 / self.size)

    def add_up(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """(sums over ranks in the shapes and types of `like`; on how many ranks each was there, float32).

        A tensor that this rank lacks (None: its rows did not reach a parameter) counts as zero.
        """
        present = [float(tensor is not None) for tensor in tensors]
        there = torch.tensor(present, dtype=torch.float32, device=like[0].device)
        parts = [torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)]
        flat = torch.cat([*(part.flatten() for part in parts), there])
        dist.all_reduce(flat)
        sums = flat.split([x.numel() for x in like] + [len(parts)])
        return [total.view(x.shape).to(x.dtype) for total, x in zip(sums, like, strict=False)], sums[-1]

    def combine(self, values: Tensor, largest: Tensor) -> Tensor:
        """The sums of `values` (n,) over ranks, or the largest where `largest` (n, bool); bit for bit alike on all."""
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
        """On every rank what `make` returned on the first one; it is called nowhere else."""
        if self.alone:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return cast("Value", box[0])

    def of_all(self, value: Value) -> list[Value]:
        """Each rank's value, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


def largest_over_ranks(value: Tensor) -> Tensor:
    """The largest `value` of all ranks, as a pure function: it works eagerly and becomes part of a compiled graph."""
    assert dist.group.WORLD is not None
    found = torch.ops._c10d_functional.all_reduce(value, "max", dist.group.WORLD.group_name)
    return torch.ops._c10d_functional.wait_tensor(found)


def lost_another_rank(error: BaseException) -> bool:
    """Whether an exception only says that another rank has gone: what happened to that one is the reason."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
