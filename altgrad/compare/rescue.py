"""Survival of runs: the survivors by format and intervention, and the share of runs alive by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altgrad.compare.row import Row
from altgrad.compare.statistics import PairedGap, collapse_step, paired_gap
from altgrad.text.number_text import number

CellKey = tuple[str, str, str]  # format, treatment (variant and what else differs), intervention


@dataclass(frozen=True)
class RescueCell:
    """The runs of one format and treatment under one intervention: `survived` of the `ended` ones did not collapse.

    `others` counts, by status, the runs that do not count for survival: they still run, were stopped, killed or failed,
    or people have hidden them.
    """

    runs: tuple[str, ...]
    ended: int
    survived: int
    others: Mapping[str, int]
    gap: PairedGap
    median_collapse_step: float | None

    @property
    def lines(self) -> list[str]:
        """The lines of the cell: survived of ended, paired gap with interval and step, median collapse step."""
        others = ", ".join(f"{n} {status}" for status, n in sorted(self.others.items()))
        said = [f"{self.survived} of {self.ended}" + (f" (+{others})" if others else "")]
        if self.gap.figure is not None:
            said.append(self.gap.figure)
        if self.median_collapse_step is not None:
            said.append(f"collapse at {number(self.median_collapse_step)}")
        return said

    @property
    def share(self) -> float | None:
        """Share of the ended runs that survived; None if none has ended."""
        return self.survived / self.ended if self.ended else None


def rescue_matrix(rows: Iterable[Row]) -> dict[CellKey, RescueCell]:
    """(format, treatment, intervention) -> the survival and the gap of its runs."""
    cells: dict[CellKey, list[Row]] = {}
    for row in rows:
        cells.setdefault((row.format, row.treatment, row.intervention), []).append(row)
    return {key: _cell(members) for key, members in cells.items()}


def matrix_axes(cells: Mapping[CellKey, RescueCell]) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows (format, treatment) and columns (intervention, `none` first) of a rescue matrix."""
    rows = sorted({(fmt, treatment) for fmt, treatment, _ in cells})
    interventions = sorted({name for _, _, name in cells}, key=lambda name: (name != "none", name.count("+"), name))
    return rows, interventions


def _cell(rows: list[Row]) -> RescueCell:
    collapsed = [row for row in rows if row.collapsed]
    survived = sum(row.status == "completed" for row in rows if not row.collapsed)
    others = Counter(str(row.status) for row in rows if not row.collapsed and row.status != "completed")
    if hidden := sum({row.group: row.hidden_mates for row in rows}.values()):
        others["hidden"] = hidden
    return RescueCell(
        runs=tuple(row.run for row in rows),
        ended=len(collapsed) + survived,
        survived=survived,
        others=others,
        gap=paired_gap(rows),
        median_collapse_step=collapse_step(collapsed),
    )


@dataclass(frozen=True)
class Survival:
    """Share of runs that have not collapsed, a step function with the value `alive[i]` from step `steps[i]` on.

    `at_risk[i]` runs were still observed when step `steps[i]` began.  `censored`: the last steps of the runs that ended
    or still run without having collapsed.
    """

    steps: NDArray[np.int64]
    alive: NDArray[np.float64]
    at_risk: NDArray[np.int64]
    censored: NDArray[np.int64]


def survival(rows: Iterable[Row]) -> Survival:
    """Kaplan-Meier estimate of the share of runs alive by step; a run that did not collapse is censored at its end.

    Example: four runs end at steps 100 (collapsed), 200 (completed), 300 (collapsed) and 500 (completed).  The share
    is 1 from step 0 on, 1 - 1/4 = 0.75 from step 100 on, and 0.75 * (1 - 1/2) = 0.375 from step 300 on.
    """
    collapses: list[int] = []
    censored: list[int] = []
    for row in rows:
        if row.collapse_step is not None:
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
