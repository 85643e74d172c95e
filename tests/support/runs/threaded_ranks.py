"""Ranks as threads of one process: the library's own collectives, with what they exchange passed on by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from altgrad.quantization.kernel.ranks import Ranks

Value = TypeVar("Value")


def on_ranks(size: int, work: Callable[[Ranks], Value], monkeypatch: pytest.MonkeyPatch) -> list[Value]:
    """What `work` returns on each of `size` ranks that work at once; the exception of one that fails."""
    meeting, own = threading.Barrier(size), threading.local()
    brought = [torch.empty(0)] * size

    def exchanged(value: Tensor) -> Tensor:
        brought[own.rank] = value.detach().clone()
        meeting.wait()
        table = torch.stack(brought)
        meeting.wait()
        return table

    def all_reduce(value: Tensor) -> None:
        value.copy_(exchanged(value).sum(0))

    def all_gather_single(found: Tensor, value: Tensor) -> None:
        found.copy_(exchanged(value).flatten())

    def working(rank: int) -> Value:
        own.rank = rank
        try:
            return work(Ranks(rank, size))
        except BaseException:
            meeting.abort()  # or the others would wait for ever
            raise

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather_single", all_gather_single)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(working, range(size)))
