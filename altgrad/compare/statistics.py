"""Statistics over seeds, on rows of a comparison.

Intervals are t intervals on paired differences.  With the three seeds that people run, a percentile bootstrap
covers about 75 % where it says 95 %, and with one or two seeds no method supports a claim; the sentences say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean, median, stdev

import numpy as np
from numpy.typing import NDArray

from altgrad.compare.rows import Row
from altgrad.markdown import number

CONFIDENCE = 0.95
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class PairedGap:
    """Mean gap to the baseline over `n` seeds and its t interval; None where `n` is too small to have one.

    `lost` counts runs without a finite gap: they collapsed to NaN or have no baseline, and the mean is over the
    others.
    """

    n: int
    lost: int
    mean: float | None
    low: float | None
    high: float | None

    @property
    def sentence(self) -> str:
        """What may be said of it."""
        lost = f" {self.lost} further run{'s have' if self.lost > 1 else ' has'} no finite gap." if self.lost else ""
        if self.mean is None:
            return "No finite gap to a baseline was measured."
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f} nats with one seed: no statement about other seeds." + lost
        interval = f"{self.mean:+.3f} nats [{self.low:+.3f}, {self.high:+.3f}], n = {self.n}"
        if self.n < ENOUGH_SEEDS:
            return f"{interval}: too few seeds for any claim; run at least {ENOUGH_SEEDS}." + lost
        if self.low <= 0 <= self.high:
            return f"{interval}: no difference from the baseline can be told." + lost
        return f"{interval}: {'behind' if self.mean > 0 else 'ahead of'} the baseline." + lost


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by `Row.group`: those of one list differ in nothing but the seed."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def paired_gap(rows: Iterable[Row]) -> PairedGap:
    """Mean and 95 % t interval of the rows' gaps over seeds; several rows of one seed count as their mean."""
    by_seed: dict[int, list[float]] = {}
    lost = 0
    for row in rows:
        if row.gap is not None and math.isfinite(row.gap):
            by_seed.setdefault(row.seed, []).append(row.gap)
        elif not row.is_baseline:
            lost += 1
    gaps = [mean(values) for values in by_seed.values()]
    n = len(gaps)
    if n < 2:
        return PairedGap(n, lost, gaps[0] if gaps else None, None, None)
    center = mean(gaps)
    half = t_quantile(n - 1) * stdev(gaps) / math.sqrt(n)
    return PairedGap(n, lost, center, center - half, center + half)


@lru_cache(maxsize=256)
def t_quantile(freedom: int) -> float:
    """The t within which `CONFIDENCE` of Student's distribution lies, for whole degrees of freedom.

    By halving the angle whose tangent is t / sqrt(freedom), of which the probability is a finite sum (Abramowitz and
    Stegun 26.7.3 and 26.7.4).  scipy.special would do too, but its import takes as long as opening a sweep.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < CONFIDENCE else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle))."""
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


@dataclass(frozen=True)
class RescueCell:
    """One format (and variant) under one intervention: `survived` of `ended` runs did not collapse.

    `unfinished` runs are still running or were stopped, killed or failed: they say nothing about survival.
    """

    runs: tuple[str, ...]
    ended: int
    survived: int
    unfinished: int
    gap: PairedGap
    median_collapse_step: float | None

    @property
    def lines(self) -> list[str]:
        """What it says: survived of ended, paired gap in nats with interval, median collapse step."""
        said = [f"{self.survived} of {self.ended}" + (f" (+{self.unfinished} open)" if self.unfinished else "")]
        if self.gap.mean is not None:
            interval = "" if self.gap.low is None else f" [{self.gap.low:+.3f}, {self.gap.high:+.3f}]"
            said.append(f"{self.gap.mean:+.3f}{interval}")
        if self.median_collapse_step is not None:
            said.append(f"collapse at {number(self.median_collapse_step)}")
        return said

    @property
    def share(self) -> float | None:
        """Share of the ended runs that survived; None where none has ended."""
        return self.survived / self.ended if self.ended else None


def rescue_matrix(rows: Iterable[Row]) -> dict[tuple[str, str, str], RescueCell]:
    """(format, variant, intervention) -> what became of its runs."""
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.format, row.variant, row.intervention), []).append(row)
    return {key: _cell(members) for key, members in cells.items()}


def matrix_axes(cells: Mapping[tuple[str, str, str], RescueCell]) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows (format, variant) and columns (intervention, `none` first) of a rescue matrix."""
    rows = sorted({(fmt, variant) for fmt, variant, _ in cells})
    interventions = sorted({name for _, _, name in cells}, key=lambda name: (name != "none", name.count("+"), name))
    return rows, interventions


def _cell(rows: list[Row]) -> RescueCell:
    collapsed = [row for row in rows if row.status == "collapsed"]
    survived = sum(row.status == "completed" for row in rows)
    steps = [row.collapse_step for row in collapsed if row.collapse_step is not None]
    return RescueCell(
        runs=tuple(row.run for row in rows),
        ended=len(collapsed) + survived,
        survived=survived,
        unfinished=len(rows) - len(collapsed) - survived,
        gap=paired_gap(rows),
        median_collapse_step=float(median(steps)) if steps else None,
    )


@dataclass(frozen=True)
class Survival:
    """Share of runs not collapsed, a step function: `alive[i]` holds from `steps[i]` on.

    `at_risk[i]` runs were still observed when step `steps[i]` began; `censored` are the steps at which runs ended
    or stand without having collapsed.
    """

    steps: NDArray[np.int64]
    alive: NDArray[np.float64]
    at_risk: NDArray[np.int64]
    censored: NDArray[np.int64]


def survival(rows: Iterable[Row]) -> Survival:
    """Kaplan-Meier estimate of the share of runs alive by step; a run that did not collapse is censored at its end."""
    collapses: list[int] = []
    censored: list[int] = []
    for row in rows:
        if row.status == "collapsed" and row.collapse_step is not None:
            collapses.append(row.collapse_step)
        else:
            censored.append(row.step)
    ends = np.sort(np.array(collapses + censored, np.int64))
    steps, counts = np.unique(np.array(collapses, np.int64), return_counts=True)
    at_risk = len(ends) - np.searchsorted(ends, steps, side="left")
    alive = np.cumprod(1 - counts / at_risk)
    return Survival(
        steps=np.concatenate([[0], steps]),
        alive=np.concatenate([[1.0], alive]),
        at_risk=np.concatenate([[len(ends)], at_risk]),
        censored=np.sort(np.array(censored, np.int64)),
    )
