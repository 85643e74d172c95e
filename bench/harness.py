"""The timing of all rows: two functions are run alternately, and the median of the ratios of their times is taken.

A shared or throttled machine slows both halves of a pair alike, whereas absolute times would depend on its state.  The
processor time of this process is measured, because wall time includes the load of other processes; on a GPU the time
between two events on the device.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_WARM_UP = 3

# By default glibc maps new pages for every large tensor, and returns them when it is freed.
MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


class NotMeasured(Exception):
    """The row cannot be measured on this machine; the message is the reason."""


@dataclass(frozen=True)
class Row:
    """One line of the table: `name` describes the comparison, `goal` is the largest allowed ratio.

    `measure` takes the number of pairs and returns the ratio of each; it raises NotMeasured if the machine lacks a
    requirement.  `minutes`: takes minutes, and therefore runs only if it is named on the command line.
    """

    name: str
    goal: float
    measure: Callable[[int], list[float]]
    pairs: int = 21
    minutes: bool = False


@dataclass(frozen=True)
class Measured:
    """A row's result: the median of its ratios, and their quartiles `low` and `high`.

    `note`: the reason if the row could not be measured; the numbers are then None.
    """

    name: str
    goal: float
    ratio: float | None
    note: str = ""
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, row: Row) -> Measured:
        try:
            found = row.measure(row.pairs)
        except NotMeasured as reason:
            return cls(row.name, row.goal, None, str(reason))
        low, middle, high = statistics.quantiles(found, method="inclusive") if len(found) > 1 else found * 3
        return cls(row.name, row.goal, middle, low=low, high=high)

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return f"not measured: {self.note}"
        return "reached" if self.ratio <= self.goal else "missed"


def ratio(
    ours: Callable[[], object], reference: Callable[[], object], pairs: int, warm_up: int = _WARM_UP
) -> list[float]:
    """(Time of `ours`) / (time of `reference`) of each pair; both run alternately, after `warm_up` runs of each."""
    return _ratio(ours, reference, pairs, _seconds, warm_up)


def cuda_ratio(ours: Callable[[], object], reference: Callable[[], object], pairs: int) -> list[float]:
    """As `ratio`, in the time that passes on the current CUDA device between the first and the last kernel."""
    return _ratio(ours, reference, pairs, _device_milliseconds)


def ratio_on(device: torch.device, ours: Callable[[], object], reference: Callable[[], object], pairs: int) -> float:
    """The median of `ratio` or, on a GPU, of `cuda_ratio`."""
    return statistics.median((cuda_ratio if device.type == "cuda" else ratio)(ours, reference, pairs))


def milliseconds_on(device: torch.device, run: Callable[[], object], times: int) -> float:
    """The median time of `run`, after a warm-up, as the device's rows measure it."""
    for _ in range(_WARM_UP):
        run()
    on_gpu = device.type == "cuda"
    return statistics.median(_device_milliseconds(run) if on_gpu else 1000 * _seconds(run) for _ in range(times))


def cuda_device() -> torch.device:
    """The GPU on which a row is measured.  Raises NotMeasured without one."""
    if not torch.cuda.is_available():
        raise NotMeasured("no CUDA device")
    return torch.device("cuda")


def _ratio(
    ours: Callable[[], object],
    reference: Callable[[], object],
    pairs: int,
    time_of: Callable[[Callable[[], object]], float],
    warm_up: int = _WARM_UP,
) -> list[float]:
    for _ in range(warm_up):
        ours()
        reference()
    ratios = []
    for _ in range(pairs):
        first, second = time_of(reference), time_of(ours)
        ratios.append(second / first)
    return ratios


def _seconds(run: Callable[[], object]) -> float:
    """CPU seconds divided by the number of torch threads: the time on otherwise idle processors."""
    started = time.process_time()
    run()
    return (time.process_time() - started) / torch.get_num_threads()


def _device_milliseconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Context in which torch uses this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def malloc_setting() -> str:
    """The allocator setting of this process, which the results record."""
    return os.environ.get("GLIBC_TUNABLES", "glibc's defaults")
