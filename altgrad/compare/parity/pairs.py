"""A group of runs against another group: paired differences of their losses by seed, and the verdict on them.

The losses are those of the common step, and of the same seed on both sides, so weights and batches are the same as in a
gap to the baseline; where the hashes say otherwise, there is a sentence instead of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from altgrad.compare.groups import by_group, by_task
from altgrad.compare.parity.confounds import confounds, joined
from altgrad.compare.parity.student_t import t_quantile
from altgrad.compare.parity.verdict import Parity, Terms, judged
from altgrad.compare.row import Row
from altgrad.compare.statistics import interval, not_judged
from altgrad.results.reading.curves import Curve
from altgrad.text.number_text import difference, interval_text


@dataclass(frozen=True)
class GroupDifference:
    """Loss of group `one` minus that of group `other`, by seed, at `step`; positive where `one` is behind.

    `low` and `high`: 95 % t interval, None below two seeds.  `differs`: what differs between the two besides the
    format.  `obstacle`: why runs cannot be compared, maybe empty.
    """

    one: str
    other: str
    seeds: tuple[int, ...]
    mean: float | None
    low: float | None
    high: float | None
    step: int | None
    parity: Parity
    differs: str
    obstacle: str = ""

    @property
    def sentence(self) -> str:
        """`E4M3 against E3M4: +0.012 nats [+0.008, +0.016] at step 500, n = 3: worse than E3M4 by more than ...`."""
        return f"{self.one} against {self.other}: {self.said}"

    @property
    def said(self) -> str:
        """The sentence without the names of the groups."""
        if self.mean is None:
            return f"{self.obstacle or self.parity.sentence}."
        interval = interval_text(self.low, self.high, self.parity.unit)
        unit = f" {self.parity.unit}" if self.parity.unit else ""
        figure = f"{difference(self.mean, self.parity.unit)}{unit}{interval} at step {self.step}, n = {len(self.seeds)}"
        note = f" {self.obstacle}." if self.obstacle else ""
        return f"{figure}: {self.parity.sentence}. Differs in: {self.differs}.{note}"


def group_difference(one: Sequence[Row], other: Sequence[Row], terms: Terms | None = None) -> GroupDifference:
    """One group against another as a comparison of its own."""
    terms = terms or Terms()
    found = _unjudged(one, other, terms.margin)
    return replace(found, parity=judged([found.parity], terms.looks)[0])


def all_pairs(rows: Iterable[Row], terms: Terms | None = None) -> dict[tuple[str, str], GroupDifference]:
    """(group, other group) -> their difference, for each pair of groups of a task once.

    The verdicts of one task are one table.
    """
    terms = terms or Terms()
    return {pair: one for own in by_task(rows).values() for pair, one in _pairs_of_task(own, terms).items()}


def _pairs_of_task(rows: Iterable[Row], terms: Terms) -> dict[tuple[str, str], GroupDifference]:
    groups = by_group(rows)
    found = {pair: _unjudged(groups[pair[0]], groups[pair[1]], terms.margin) for pair in combinations(groups, 2)}
    verdicts = judged([one.parity for one in found.values()], terms.looks)
    return {pair: replace(one, parity=two) for (pair, one), two in zip(found.items(), verdicts, strict=True)}


@dataclass(frozen=True)
class DifferenceCurve:
    """Mean difference of two groups by step over `n` seeds, with its 95 % t interval (NaN below two seeds)."""

    n: int
    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def difference_curve(pairs: Sequence[tuple[Curve, Curve]]) -> DifferenceCurve | None:
    """The first minus the second of pairs of curves, one per seed, at the steps that all have.

    None without a step at which it is finite.  The band ends where the first of the runs ends: a mean over survivors
    would mislead.
    """
    if not pairs:
        return None
    common = reduce(np.intersect1d, (curve.steps for pair in pairs for curve in pair))
    if not len(common):
        return None
    with np.errstate(invalid="ignore"):
        values = np.stack([_at(common, one) - _at(common, other) for one, other in pairs])  # (seeds, steps)
        n, middle = len(pairs), values.mean(axis=0)
    if not np.isfinite(middle).any():
        return None
    half = np.full_like(middle, np.nan)
    if n > 1:
        half = t_quantile(n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return DifferenceCurve(n, common, middle, middle - half, middle + half)


def _at(steps: NDArray[np.int64], curve: Curve) -> NDArray[np.float64]:
    return curve.values[np.searchsorted(curve.steps, steps)]


def paired_runs(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The runs of two groups with the same seed that may be compared, in order of the seeds."""
    pairs = [(mine, theirs) for mine in one for theirs in other if mine.seed == theirs.seed]
    return sorted((pair for pair in pairs if _obstacle(*pair) is None), key=lambda pair: pair[0].seed)


def differences_by_seed(one: Sequence[Row], other: Sequence[Row]) -> dict[int, float]:
    """Seed -> final loss of its runs in `one` minus that in `other`; several pairs of one seed count as their mean."""
    return {seed: mean(a - b for a, b in losses) for seed, losses in _losses_by_seed(one, other).items()}


def _losses_by_seed(one: Sequence[Row], other: Sequence[Row]) -> dict[int, list[tuple[float, float]]]:
    """Seed, in order -> final losses of the pairs of its runs that may be compared."""
    found: dict[int, list[tuple[float, float]]] = {}
    for mine, theirs in paired_runs(one, other):
        if mine.final_loss is not None and theirs.final_loss is not None:
            found.setdefault(mine.seed, []).append((mine.final_loss, theirs.final_loss))
    return found


def _unjudged(one: Sequence[Row], other: Sequence[Row], margin: float | None) -> GroupDifference:
    pairs = [(mine, theirs) for mine in one for theirs in other if mine.seed == theirs.seed]
    obstacles = dict.fromkeys(said for mine, theirs in pairs if (said := _obstacle(mine, theirs)) is not None)
    matched, by_seed = paired_runs(one, other), _losses_by_seed(one, other)
    values = differences_by_seed(one, other)
    finite = {seed: value for seed, value in values.items() if math.isfinite(value)}
    reference = [b for seed in finite for _, b in by_seed[seed]]
    middle, low, high = interval(list(finite.values()))
    against = other[0].group_label
    parity = replace(
        not_judged(one, finite.values(), reference, margin, against),
        against_runs=len(other),
        against_dead=sum(row.is_dead for row in other),
        against_early=sum(not row.alive and not row.collapsed for row in other),
    )
    return GroupDifference(
        one=one[0].group_label,
        other=against,
        seeds=tuple(finite),
        mean=middle,
        low=low,
        high=high,
        step=next((row.common_step for row in one if row.common_step is not None), None),
        parity=replace(parity, hidden=one[0].hidden_mates + other[0].hidden_mates),
        differs=joined(_differences(mine, theirs) for mine, theirs in matched),
        obstacle="; ".join(obstacles),
    )


def _obstacle(mine: Row, theirs: Row) -> str | None:
    if said := mine.origin.obstacle(theirs.origin):
        return said
    if mine.loss_unit != theirs.loss_unit:
        units = f"{mine.loss_unit or 'an unknown unit'} vs {theirs.loss_unit or 'an unknown unit'}"
        return f"not compared: losses in {units}"
    if mine.common_step != theirs.common_step:
        return f"not compared: measured at other steps ({mine.common_step} vs {theirs.common_step})"
    return None


def _differences(mine: Row, theirs: Row) -> tuple[str, ...]:
    if mine.settings is None or theirs.settings is None:
        return ()
    return confounds(mine.settings, mine.origin, theirs.settings, theirs.origin)
