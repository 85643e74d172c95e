"""The parity verdict: whether paired differences lie within a margin around 0, beyond it, or cannot tell yet.

Two one-sided t tests on the paired differences (Schuirmann 1987) find that their mean is inside the margin; a third and
a fourth that it is above or below it.  Each has half the level of a table's verdicts, so that a verdict of one
comparison agrees with its 95 % t interval: `equivalent` if the interval lies inside the margin, `worse` if all of it is
above, `better` if all of it is below, else `undecided`.  A table of many comparisons is corrected by Holm's method,
which keeps the chance of any wrong verdict in it at 5 %; an interval may then lie inside the margin and still be
undecided.  A sweep that adds seeds until it can tell looks several times, and each look has its share of the 5 %.

Below three seeds there is no claim, and a group with a dead run is neither equivalent nor better, because the mean is
that of its survivors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, stdev
from typing import Literal

from altgrad.compare.parity.power import MOST_SEEDS, POWER, seeds_needed
from altgrad.compare.parity.student_t import CONFIDENCE, t_tail
from altgrad.text.number_text import number

ParityWord = Literal["equivalent", "worse", "better", "undecided", "collapsed", "no claim"]
ENOUGH_SEEDS = 3
LEVEL = 1 - CONFIDENCE
MARGIN = 0.01  # nats
RELATIVE_MARGIN = 0.005  # of the loss, if its unit is unknown


@dataclass(frozen=True)
class Terms:
    """The terms of a table's verdicts: `margin` in the unit of the losses (None: the default one), number of looks."""

    margin: float | None = None
    looks: int = 1


@dataclass(frozen=True)
class Parity:
    """The verdict on the paired differences of a group to `against`.

    `differences`: by seed, in `unit`; positive where the group is behind.  `runs`, `collapsed`, `non_finite` (reached
    NaN or inf), `ended_early`: of the group; a run that reached NaN is as dead as a collapsed one.  `tested`: number of
    comparisons of the table that are tested.  `looks`: see `Terms`.  `level`: the level at which the table tests this
    comparison next, smaller than 5 % if there are several undecided ones.  `p`: two-sided, corrected.  `hidden`: number
    of the group's runs that a viewer has hidden; no claim is made then.  `against_dead`, `against_early`: number of the
    `against_runs` on the other side that died, or ended early, so that this side is not worse for its own deaths alone.
    """

    verdict: ParityWord
    margin: float | None
    unit: str = "nats"
    against: str = "BF16"
    differences: tuple[float, ...] = ()
    runs: int = 0
    collapsed: int = 0
    non_finite: int = 0
    ended_early: int = 0
    tested: int = 1
    looks: int = 1
    level: float = LEVEL
    p: float | None = None
    hidden: int = 0
    against_runs: int = 0
    against_dead: int = 0
    against_early: int = 0

    @property
    def n(self) -> int:
        """Number of seeds with a difference."""
        return len(self.differences)

    @cached_property
    def seeds(self) -> int | None:
        """The number of seeds that would decide it at 80 % power, if mean and spread stay as seen.

        None if it is decided, there is no spread to plan with, or more than `MOST_SEEDS` would be needed.
        """
        if self.verdict != "undecided" or self.margin is None or self.n < ENOUGH_SEEDS:
            return None
        spread = stdev(self.differences)
        return seeds_needed(mean(self.differences), spread, self.margin, self.level, max(self.n + 1, ENOUGH_SEEDS))

    @property
    def deaths(self) -> str:
        """`1 of 3 collapsed`, with those that reached NaN where there are any; alone, if nothing else happened."""
        if self.non_finite and not self.collapsed:
            return f"{self.non_finite} of {self.runs} reached NaN or inf"
        said = f"{self.collapsed} of {self.runs} collapsed"
        return f"{said}, {self.non_finite} reached NaN or inf" if self.non_finite else said

    @property
    def word(self) -> str:
        """The verdict as a table shows it: `reached NaN` for a group that is judged as collapsed though no run did."""
        return "reached NaN" if self.verdict == "collapsed" and not self.collapsed else self.verdict

    @property
    def within(self) -> str:
        """The margin with its unit: `0.01 nats`; of a loss of unknown unit the number alone."""
        return "" if self.margin is None else f"{number(self.margin, 2)} {self.unit}".strip()

    @property
    def sentence(self) -> str:
        """The verdict in words, without a full stop."""
        if self.verdict == "collapsed":
            return f"not as good as {self.against}: {self.deaths}"
        if self.verdict == "equivalent":
            return f"equivalent to {self.against} within {self.within}"
        if self.verdict in ("worse", "better"):
            return f"{self.verdict} than {self.against} by more than {self.within}"
        if self.verdict == "no claim":
            return self._no_claim
        return f"undecided within {self.within}: {self._what_would_decide}"

    @property
    def _no_claim(self) -> str:
        if self.hidden:
            return f"no claim: {hidden_words(self.hidden)}"
        if self.against_dead:
            return f"no claim: of {self.against}, {self.against_dead} of {self.against_runs} collapsed or reached NaN"
        if not self.n:
            return f"no claim: no seed has a finite difference to {self.against}"
        seeds = "one seed says nothing about others" if self.n == 1 else "too few seeds"
        return f"no claim: {seeds}; run at least {ENOUGH_SEEDS}"

    @property
    def _what_would_decide(self) -> str:
        if self.ended_early:
            return f"{self.ended_early} of {self.runs} ended early, and the others do not speak for them"
        if self.against_early:
            early = f"{self.against_early} of {self.against_runs} of {self.against}"
            return f"{early} ended early, and the others do not speak for them"
        if self.seeds is None:
            return f"more than {MOST_SEEDS} seeds would be needed"
        return f"about {self.seeds} seeds would decide it ({POWER:.0%} power)".replace("%", " %")


def hidden_words(n: int) -> str:
    """`1 run is hidden`, `2 runs are hidden`."""
    return "1 run is hidden" if n == 1 else f"{n} runs are hidden"


def default_margin(unit: str, loss: float | None) -> float | None:
    """The margin that was not chosen: 0.01 nats, or 0.5 % of `loss` if its unit is unknown; None without a loss."""
    if unit == "nats":
        return MARGIN
    return None if loss is None or not math.isfinite(loss) or loss == 0 else RELATIVE_MARGIN * abs(loss)


def judged(table: Sequence[Parity], looks: int = 1) -> list[Parity]:
    """The comparisons of a table with their verdicts; those given are ignored.  `looks`: see `Terms`."""
    found = [_claim(one) for one in table]
    order = sorted((at for at, (_, p) in enumerate(found) if p is not None), key=lambda at: found[at][1] or 0.0)
    result = [replace(one, verdict=word, p=None) for one, (word, _) in zip(table, found, strict=True)]
    decided, corrected = 0, 0.0
    for place, at in enumerate(order):
        word, p = found[at]
        corrected = max(corrected, min((len(order) - place) * looks * (p or 0.0), 1.0))
        if corrected <= LEVEL:
            decided = place + 1
        else:
            word = "undecided"
        result[at] = replace(result[at], verdict=word, p=corrected)
    tested = max(len(order), 1)
    next_level = LEVEL / (max(len(order) - decided, 1) * looks)
    return [replace(one, tested=tested, looks=looks, level=next_level) for one in result]


def _claim(one: Parity) -> tuple[ParityWord, float | None]:
    """The claim that fits the differences best with its two-sided p; p is None if no test is made."""
    if one.hidden or one.against_dead:
        return "no claim", None
    if one.collapsed or one.non_finite:
        return "collapsed", None
    if one.n < ENOUGH_SEEDS or one.margin is None:
        return "no claim", None
    claims = _claims(one.differences, one.margin)
    if one.ended_early:  # the survivors may be worse, but never as good
        claims = {"worse": claims["worse"]}
    if one.against_early:  # better than the survivors of the other side, but never just as good
        claims = {word: p for word, p in claims.items() if word == "better"}
    if not claims:
        return "undecided", None
    best = min(claims, key=lambda word: claims[word])
    return best, 2 * claims[best]


def _claims(differences: Sequence[float], margin: float) -> dict[ParityWord, float]:
    """One-sided p of each claim; `equivalent` has the larger p of its two tests."""
    middle, error = mean(differences), stdev(differences) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    above, below = (t_tail(_ratio(middle - edge, error), freedom) for edge in (margin, -margin))
    return {"equivalent": max(1 - above, below), "worse": above, "better": 1 - below}


def _ratio(distance: float, error: float) -> float:
    """`distance / error`; infinite if all differences are equal."""
    return distance / error if error else math.copysign(math.inf, distance) if distance else 0.0
