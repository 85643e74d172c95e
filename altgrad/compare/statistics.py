"""Statistics over seeds, on rows of a comparison.

Intervals are Student's t intervals of paired differences.  With three seeds, the usual number, a percentile bootstrap
of nominally 95 % covers only about 75 %; with one or two seeds no method supports a claim, and the sentences say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import mean, median, stdev

from altgrad.compare.groups import by_group
from altgrad.compare.row import Row, loss_unit

CONFIDENCE = 0.95
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class PairedGap:
    """Mean gap of a group to the baseline over `n` seeds at `step`, with its 95 % t interval from `low` to `high`.

    The interval is None for fewer than two seeds, the mean for none.  Of the group's `runs`, `collapsed` ones have no
    gap at that step; `lost` further ones have no finite gap, because they ended early, have no baseline, or
    (`non_finite` of them) reached NaN or inf.  The mean is over the other runs.
    """

    n: int
    lost: int
    mean: float | None
    low: float | None
    high: float | None
    step: int | None = None
    runs: int = 0
    collapsed: int = 0
    non_finite: int = 0
    unit: str = "nats"

    @property
    def is_whole(self) -> bool:
        """Whether no run of the group collapsed or reached NaN; otherwise the mean is that of the survivors only."""
        return not self.collapsed and not self.non_finite

    @property
    def count(self) -> str:
        """`1 of 3 collapsed`; every sentence about a group contains it."""
        return f"{self.collapsed} of {self.runs} collapsed"

    @property
    def figure(self) -> str | None:
        """Mean, interval and step: `+0.050 [+0.041, +0.060] at step 500`; None if there is no mean."""
        if self.mean is None:
            return None
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{interval}" + ("" if self.step is None else f" at step {self.step}")

    @property
    def sentence(self) -> str:
        """The mean with interval, step, n and collapses, and the claim that these data support."""
        lost = f" {self.lost} further run{'s have' if self.lost > 1 else ' has'} no finite gap." if self.lost else ""
        if self.mean is None:
            return f"No finite gap to a baseline was measured; {self.count}."
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        at = "" if self.step is None else f" at step {self.step}"
        unit = f" {self.unit}" if self.unit else ""
        said = f"{self.mean:+.3f}{unit}{interval}{at}, n = {self.n}, {self.count}"
        return f"{said}: {self._claim}.{lost}"

    @property
    def _claim(self) -> str:
        if self.low is None or self.high is None:
            return "one seed: no statement about other seeds"
        if self.n < ENOUGH_SEEDS:
            return f"too few seeds for any claim; run at least {ENOUGH_SEEDS}"
        if not self.is_whole:
            return "the mean is that of the survivors and says nothing for the group"
        if self.low <= 0 <= self.high:
            return "no difference from the baseline can be told"
        return f"{'behind' if self.mean is not None and self.mean > 0 else 'ahead of'} the baseline"


def paired_gap(rows: Iterable[Row]) -> PairedGap:
    """Mean and 95 % t interval of the rows' final gaps over seeds; several rows of one seed count as their mean."""
    members = list(rows)
    by_seed: dict[int, list[float]] = {}
    measured = [row for row in members if row.final_gap is not None]
    counted = [row for row in measured if math.isfinite(row.final_gap or 0.0)]
    for row in counted:
        by_seed.setdefault(row.seed, []).append(row.final_gap or 0.0)
    lost = sum(not (row.is_baseline or row.collapsed) for row in members) - len(counted)
    step = max((row.gap_step for row in counted if row.gap_step is not None), default=None)
    gaps = [mean(values) for values in by_seed.values()]
    whole = PairedGap(
        n=len(gaps),
        lost=lost,
        mean=mean(gaps) if gaps else None,
        low=None,
        high=None,
        step=step,
        runs=len(members),
        collapsed=sum(row.collapsed for row in members),
        non_finite=len(measured) - len(counted),
        unit=loss_unit(members),
    )
    if len(gaps) < 2 or whole.mean is None:
        return whole
    half = t_quantile(len(gaps) - 1) * stdev(gaps) / math.sqrt(len(gaps))
    return replace(whole, low=whole.mean - half, high=whole.mean + half)


def ranking(rows: Iterable[Row]) -> list[tuple[list[Row], PairedGap]]:
    """Groups with a mean gap, the lowest first; groups with a collapse or NaN come after all others.

    A collapsed run has no gap at the common step, so the mean of its group is over the surviving seeds only.
    """
    groups = [
        (members, paired_gap(members))
        for members in by_group(rows).values()
        if not any(row.is_baseline for row in members)
    ]
    found = [(members, gap) for members, gap in groups if gap.mean is not None]
    return sorted(found, key=lambda group: (not group[1].is_whole, group[1].mean or 0.0))


def furthest(rows: Iterable[Row]) -> list[Row]:
    """The runs alive whose last validation loss is of the latest step: only losses of one step have a common mean."""
    alive = [row for row in rows if row.alive and row.validation_loss is not None]
    last = max((row.validation_step or 0 for row in alive), default=0)
    return [row for row in alive if (row.validation_step or 0) == last]


def collapse_step(rows: Iterable[Row]) -> float | None:
    """The median collapse step of some runs; None if none has collapsed."""
    steps = [row.collapse_step for row in rows if row.collapse_step is not None]
    return float(median(steps)) if steps else None


@lru_cache(maxsize=256)
def t_quantile(freedom: int) -> float:
    """The t for which P(|T| < t) = `CONFIDENCE`, where T has Student's distribution with `freedom` degrees of freedom.

    Bisection on the angle whose tangent is t / sqrt(freedom): the probability is a finite sum in it (Abramowitz and
    Stegun 26.7.3 and 26.7.4).  Example: t_quantile(2) = 4.303.  scipy.special has this function, but importing scipy
    takes as long as opening a sweep.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < CONFIDENCE else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)) for T with Student's distribution."""
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
