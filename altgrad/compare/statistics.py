"""Statistics over seeds, on rows of a comparison.

Intervals are Student's t intervals of paired differences.  With three seeds, the usual number, a percentile bootstrap
of nominally 95 % covers only about 75 %; with one or two seeds no method supports a claim, and the sentences say so.
The claim itself is the parity verdict, which depends on all groups of the comparison (see `parity.verdict`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median, stdev

from altgrad.compare.groups import by_group, by_task
from altgrad.compare.parity.student_t import t_quantile
from altgrad.compare.parity.verdict import Parity, Terms, default_margin, judged
from altgrad.compare.row import Row, loss_unit
from altgrad.text.number_text import ABSENT, difference, interval_text


@dataclass(frozen=True)
class PairedGap:
    """Mean gap of a group to the baseline over `n` seeds at `step`, with its 95 % t interval from `low` to `high`.

    The interval is None for fewer than two seeds, the mean for none.  Of the group's `runs`, `collapsed` ones have no
    gap at that step; `lost` further ones have no finite gap, because they ended early, have no baseline, or reached NaN
    or inf, as `non_finite` of them did by now.  The mean is over the other runs.
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
    parity: Parity | None = None

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
        return f"{self._mean}{self._interval}" + ("" if self.step is None else f" at step {self.step}")

    @property
    def _mean(self) -> str:
        return ABSENT if self.mean is None else difference(self.mean, self.unit, 3)

    @property
    def _interval(self) -> str:
        return interval_text(self.low, self.high, self.unit, 3)

    @property
    def sentence(self) -> str:
        """The mean with interval, step, n and collapses, and the claim that these data support."""
        if self.mean is None:
            return f"No finite gap to a baseline was measured; {self.count}."
        at = "" if self.step is None else f" at step {self.step}"
        further = f"{self.lost} further run{'s have' if self.lost > 1 else ' has'}"
        lost = f" {further} no finite gap{at}." if self.lost else ""
        unit = f" {self.unit}" if self.unit else ""
        said = f"{self._mean}{unit}{self._interval}{at}, n = {self.n}"
        if self.parity is None:
            return f"{said}, {self.count}.{lost}"
        count = "" if self.parity.verdict == "collapsed" else f", {self.count}"  # the verdict says it
        return f"{said}{count}: {self.parity.sentence}.{lost}"


def paired_gap(rows: Iterable[Row]) -> PairedGap:
    """Mean and 95 % t interval of the rows' final gaps over seeds; several rows of one seed count as their mean.

    The verdict is that of the rows (see `with_parity`), or one for this group alone if they have none.
    """
    members = list(rows)
    counted = [row for row in members if row.final_gap is not None and math.isfinite(row.final_gap)]
    lost = sum(not (row.is_baseline or row.collapsed) for row in members) - len(counted)
    step = max((row.gap_step for row in counted if row.gap_step is not None), default=None)
    gaps = _gaps(counted)
    parity = next((row.parity for row in members if row.parity is not None), None)
    middle, low, high = interval(gaps)
    return PairedGap(
        n=len(gaps),
        lost=lost,
        mean=middle,
        low=low,
        high=high,
        step=step,
        runs=len(members),
        collapsed=sum(row.collapsed for row in members),
        non_finite=sum(row.non_finite for row in members),
        unit=loss_unit(members),
        parity=judged([_evidence(members, None)])[0] if parity is None else parity,
    )


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean, low and high end of the 95 % t interval; the ends are None below two values, the mean without any."""
    if len(values) < 2:
        return (mean(values) if values else None), None, None
    middle, half = mean(values), t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def with_parity(rows: Sequence[Row], terms: Terms) -> list[Row]:
    """The rows, each with the verdict on its group.

    Of each task all groups but the baselines are one table, so call this with all rows of a comparison.
    """
    return [row for own in by_task(rows).values() for row in _of_one_table(own, terms)]


def _of_one_table(rows: Sequence[Row], terms: Terms) -> list[Row]:
    groups = {key: members for key, members in by_group(rows).items() if not any(row.is_baseline for row in members)}
    by_name = {row.run: row for row in rows}
    evidence = [_beside_baselines(_evidence(members, terms.margin), members, by_name) for members in groups.values()]
    found = judged(evidence, terms.looks)
    verdicts = dict(zip(groups, found, strict=True))
    return [replace(row, parity=verdicts.get(row.group)) for row in rows]


def _beside_baselines(evidence: Parity, members: Sequence[Row], by_name: Mapping[str, Row]) -> Parity:
    """The evidence with the baselines that died or ended early, unless the group died where its baseline lived.

    The other pairs do not speak for such a seed: the group is not as good, or as bad, there.
    """
    baselines = {row.run: by_name.get(row.baseline or "") for row in members}
    dead = [baselines[row.run] for row in members if row.is_dead]
    if any(row is None or not row.is_dead for row in dead):
        return evidence
    known = {row.run: row for row in baselines.values() if row is not None}.values()
    return replace(
        evidence,
        against_runs=len(known),
        against_dead=sum(row.is_dead for row in known),
        against_early=sum(not row.alive and not row.collapsed for row in known),
    )


def _evidence(members: Sequence[Row], margin: float | None) -> Parity:
    """The differences of a group to its baselines, not judged yet."""
    counted = [row for row in members if row.final_gap is not None and math.isfinite(row.final_gap)]
    losses = [
        row.step_loss - row.final_gap for row in counted if row.step_loss is not None and row.final_gap is not None
    ]
    return not_judged(members, _gaps(counted), losses, margin)


def not_judged(
    rows: Sequence[Row],
    differences: Iterable[float],
    reference: Sequence[float],
    margin: float | None,
    against: str = Parity.against,
) -> Parity:
    """The differences between the runs `rows`, one per seed, before a verdict.

    `reference`: losses of the side that they are compared with.  Their mean gives the margin if `margin` is None.
    """
    unit = loss_unit(rows)
    return Parity(
        verdict="no claim",
        margin=default_margin(unit, mean(reference) if reference else None) if margin is None else margin,
        unit=unit,
        against=against,
        differences=tuple(differences),
        runs=len(rows),
        collapsed=sum(row.collapsed for row in rows),
        non_finite=sum(row.non_finite for row in rows),
        ended_early=sum(not row.alive and not row.collapsed for row in rows),
    )


def _gaps(counted: Iterable[Row]) -> list[float]:
    """The final gaps by seed."""
    by_seed: dict[int, list[float]] = {}
    for row in counted:
        by_seed.setdefault(row.seed, []).append(row.final_gap or 0.0)
    return [mean(values) for values in by_seed.values()]


def ranking(rows: Iterable[Row]) -> list[tuple[list[Row], PairedGap]]:
    """Groups of one task with a mean gap, the lowest first; groups with a collapse or NaN come after all others.

    The groups of several tasks are ranked within each, one task after the other (see `by_task`).  A collapsed run has
    no gap at the common step, so the mean of its group is over the surviving seeds only.
    """
    groups = [
        (members, paired_gap(members))
        for members in by_group(rows).values()
        if not any(row.is_baseline for row in members)
    ]
    found = [(members, gap) for members, gap in groups if gap.mean is not None]
    order = list(dict.fromkeys(members[0].task for members, _ in groups))
    return sorted(found, key=lambda group: (order.index(group[0][0].task), not group[1].is_whole, group[1].mean or 0.0))


def furthest(rows: Iterable[Row]) -> list[Row]:
    """The runs alive whose last validation loss is of the latest step: only losses of one step have a common mean."""
    alive = [row for row in rows if row.alive and row.validation_loss is not None]
    last = max((row.validation_step or 0 for row in alive), default=0)
    return [row for row in alive if (row.validation_step or 0) == last]


def collapse_step(rows: Iterable[Row]) -> float | None:
    """The median collapse step of some runs; None if none has collapsed."""
    steps = [row.collapse_step for row in rows if row.collapse_step is not None]
    return float(median(steps)) if steps else None
