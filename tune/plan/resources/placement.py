"""Simulates the sweep's queue: the slot, the start and the end of each trial.

Ray starts trials in the planned order, each as soon as a slot is free (list scheduling), so that the schedule can be
computed beforehand.  Example: trials of 3, 2 and 2 seconds on two slots.  The first takes slot 0 until 3, the second
slot 1 until 2, the third then slot 1 until 4: two waves, an end at 4, and a tail of 1 second in which slot 0 is idle.

If no step time is known, the work of a trial replaces its seconds; the waves are the same if all trials work at equal
speed.  Every trial is assumed to train to its last step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from altgrad.config.train_config import TrainConfig
from altgrad.text.number_text import duration


@dataclass(frozen=True)
class Expected:
    """Seconds until the first trial of a slot trains (`start`), and seconds of each trial."""

    start: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Placed:
    """A trial's slot, its turn in that slot (`wave`; both counted from 0), its start and its end."""

    slot: int
    wave: int
    start: float
    end: float


@dataclass(frozen=True)
class Placement:
    """The place of every trial, in the planned order; times in seconds, or in units of work if seconds are unknown."""

    trials: tuple[Placed, ...]
    slots: int

    @property
    def end(self) -> float:
        """Time at which the last trial ends."""
        return max((placed.end for placed in self.trials), default=0.0)

    @property
    def waves(self) -> int:
        """Largest number of trials in one slot."""
        return max((placed.wave + 1 for placed in self.trials), default=0)

    @property
    def tail(self) -> float:
        """Time from the end of the slot that finishes first to the end of the sweep."""
        last = [min((placed.start for placed in self.trials), default=0.0)] * self.slots
        for placed in self.trials:
            last[placed.slot] = max(last[placed.slot], placed.end)
        return self.end - min(last, default=0.0)

    def sentence(self) -> str:
        """One sentence about the wall time; only for a placement in seconds."""
        waves = f"{self.waves} wave" + "s" * (self.waves != 1)
        return (
            f"expected wall time {duration(self.end)} if no trial collapses: {waves} on {self.slots} "
            f"slot{'s' * (self.slots != 1)}, the first of which is idle for the last {duration(self.tail)}"
        )


def place(lengths: Sequence[float], slots: int, start: float = 0.0) -> Placement:
    """Assign each trial, in order, to the slot that is free first, or the lowest-numbered of several.

    lengths: duration of each trial.  All slots are free from `start` on.
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
    """Number of multiplications in the forward GEMMs of the steps that a trial itself trains, with a byte vocabulary.

    It compares trials before timing.
    """
    shape, d = config.shape, config.shape.n_embd
    per_token = shape.n_layer * (12 * d * d + 2 * shape.block_size * d) + 256 * d
    return (config.max_steps - config.begins_after) * config.batch_size * shape.block_size * per_token
