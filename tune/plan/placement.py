"""In which order and beside which others trials will train, and for how long: the sweep's queue, played through.

Ray starts trials in the planned order, each as soon as a slot is free (list scheduling), so the queue can be played
without running anything.  Where no step time is known, the work of a trial stands for its seconds: the waves come out
the same as long as all trials do their work equally fast.  No trial is assumed to collapse.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from altgrad.config.train_config import TrainConfig
from altgrad.text.number_text import duration


@dataclass(frozen=True)
class Expected:
    """Seconds until a slot's first trial trains, and those that each trial then takes."""

    start: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Placed:
    """One trial's place: its slot and its turn there (both from 0), when it starts and ends."""

    slot: int
    wave: int
    start: float
    end: float


@dataclass(frozen=True)
class Placement:
    """Every trial's place, in the planned order; times in seconds, or in units of work where those are not known."""

    trials: tuple[Placed, ...]
    slots: int

    @property
    def end(self) -> float:
        """When the last trial ends."""
        return max((placed.end for placed in self.trials), default=0.0)

    @property
    def waves(self) -> int:
        """Turns of the slot that has most of them."""
        return max((placed.wave + 1 for placed in self.trials), default=0)

    @property
    def tail(self) -> float:
        """From the moment at which the first slot has nothing left to do to the end."""
        last = [min((placed.start for placed in self.trials), default=0.0)] * self.slots
        for placed in self.trials:
            last[placed.slot] = max(last[placed.slot], placed.end)
        return self.end - min(last, default=0.0)

    def sentence(self) -> str:
        """Wall time, for a placement in seconds."""
        waves = f"{self.waves} wave" + "s" * (self.waves != 1)
        return (
            f"expected wall time {duration(self.end)} if no trial collapses: {waves} on {self.slots} "
            f"slot{'s' * (self.slots != 1)}, the first of which is idle for the last {duration(self.tail)}"
        )


def place(lengths: Sequence[float], slots: int, start: float = 0.0) -> Placement:
    """Give each trial in turn to the slot that is free first; of several to the one with the lowest number.

    All slots are free from `start` on.
    """
    free = [(start, slot) for slot in range(slots)]
    turns = [0] * slots
    placed = []
    for length in lengths:
        start, slot = heapq.heappop(free)
        placed.append(Placed(slot, turns[slot], start, start + length))
        turns[slot] += 1
        heapq.heappush(free, (start + length, slot))
    return Placement(tuple(placed), slots)


def work(config: TrainConfig) -> int:
    """Multiplications of a trial's GEMMs, forward, with a byte vocabulary: how trials compare before any is timed."""
    shape, d = config.shape, config.shape.n_embd
    per_token = shape.n_layer * (12 * d * d + 2 * shape.block_size * d) + 256 * d
    return config.max_steps * config.batch_size * shape.block_size * per_token
