"""Recall, false stops, delay and compute saved of a rule, from the steps at which it stopped the runs.

A stop before the first step at which a run differs from its twin is a false stop, whatever becomes of the run later:
nothing is wrong yet.  So every healthy run is one chance of a false stop, and every run with a late fault that
collapsed is one until its fault begins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.detectors.recording import Recording
from bench.detectors.truth import Outcome

Z = 1.959963984540054  # quantile 0.975 of the normal distribution


@dataclass(frozen=True)
class Judged:
    """A recorded run and what became of it."""

    run: Recording
    outcome: Outcome

    @property
    def name(self) -> str:
        return self.run.plan.name


@dataclass(frozen=True)
class Score:
    """How often a rule was right.  delays: steps from the onset of each caught collapse to its stop.

    saved: part of all steps of collapsed runs that the stops left out.  wasted: part of all steps of healthy runs that
    false stops left out.  undecided: (stopped, all) of the runs that are not scored.
    """

    caught: int
    collapsed: int
    false: int
    chances: int
    delays: tuple[int, ...]
    saved: float
    wasted: float
    undecided: tuple[int, int]

    @property
    def recall(self) -> float:
        return self.caught / self.collapsed if self.collapsed else math.nan

    @property
    def false_stops(self) -> float:
        return self.false / self.chances if self.chances else math.nan

    @property
    def delay(self) -> float | None:
        """Median delay in steps; None if nothing was caught."""
        return median(self.delays) if self.delays else None


def score(runs: Sequence[Judged], stops: Mapping[str, int | None]) -> Score:
    """The score of a rule that stopped the runs at these steps, by name; None: not at all."""
    caught = false = chances = 0
    delays: list[int] = []
    saved = lost = wasted = healthy = 0
    for one in runs:
        stop, onset, steps = stops[one.name], one.run.plan.onset, one.run.steps
        if one.outcome.kind == "undecided":
            continue
        is_early = stop is not None and stop < onset
        if one.outcome.kind == "healthy":
            chances += 1
            healthy += steps
            if stop is not None:
                false += 1
                wasted += steps - stop
            continue
        lost += steps
        chances += onset > 1
        false += is_early
        if stop is not None and not is_early:
            caught += 1
            delays.append(stop - onset)
            saved += steps - stop
    undecided = [stops[one.name] is not None for one in runs if one.outcome.kind == "undecided"]
    collapsed = sum(one.outcome.kind == "collapsed" for one in runs)
    return Score(
        caught, collapsed, false, chances, tuple(sorted(delays)),
        saved / lost if lost else math.nan, wasted / healthy if healthy else math.nan,
        (sum(undecided), len(undecided)),
    )  # fmt: skip


def wilson(hits: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: hits of number."""
    if not number:
        return 0.0, 1.0
    share = hits / number
    middle = share + Z**2 / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + (Z / (2 * number)) ** 2)
    scale = 1 + Z**2 / number
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
