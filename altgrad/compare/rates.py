"""Learning rates: the best one of each format, how wide the usable ones are, the gap at a shared rate and at each best.

A format that needs a smaller rate than BF16 looks worse at BF16's rate than it is.  So a sweep over rates gives two
gaps: at the rate at which BF16 is best, and between the two at their own best rates.  All losses are those of the
common step, paired by seed, and BF16 has the format's own settings but for the rate: in a sweep over rates and widths
each width has a BF16 of its own.  A rate at which a run died or reached NaN is neither best nor usable.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from altgrad.compare.groups import by_group, by_task
from altgrad.compare.parity.pairs import differences_by_seed, paired_runs
from altgrad.compare.parity.verdict import hidden_words
from altgrad.compare.row import Row, loss_unit
from altgrad.compare.statistics import interval
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import ABSENT, difference, interval_text, table

USABLE = 0.1  # nats above a format's own best
_USABLE_SHARE = 0.05  # of the loss, if its unit is unknown
RATE_HEADS = ("Format", "Best rate", "Optimum", "Usable rates", "Gap at BF16's best rate", "Gap, each at its best")


@dataclass(frozen=True)
class RateLine:
    """A format (with treatment and intervention) over the rates that were tried.

    `losses`: rate -> mean loss over seeds at the common step, for rates at which all runs are well.  `best`: the rate
    with the smallest.  `where`: `interior`, or at which edge of the grid the best lies.  `usable`: lowest and highest
    rate around the best without one in between that ends 0.1 nats (or 5 % of an unknown loss) above it.
    `shared`, `tuned`: mean and interval of the gap at the baseline's best rate, and of each at its own; None without.
    `hidden`: number of its runs that people have hidden; the cells make no claim then.
    """

    name: str
    rates: tuple[float, ...]
    losses: Mapping[float, float]
    best: float
    where: str
    usable: tuple[float, float]
    shared: tuple[float | None, float | None, float | None]
    tuned: tuple[float | None, float | None, float | None]
    hidden: int = 0
    unit: str = "nats"  # of the losses

    @property
    def width(self) -> float:
        """Highest divided by lowest usable rate."""
        return self.usable[1] / self.usable[0]

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `RATE_HEADS`."""
        if self.hidden:
            return self.name, ABSENT, f"no claim: {hidden_words(self.hidden)}", ABSENT, ABSENT, ABSENT
        low, high = self.usable
        width = f"{low:.3g} to {high:.3g} (x{self.width:.3g})" if high > low else f"{low:.3g} alone"
        return self.name, f"{self.best:.3g}", self.where, width, self._figure(self.shared), self._figure(self.tuned)

    def _figure(self, gap: tuple[float | None, float | None, float | None]) -> str:
        middle, low, high = gap
        return ABSENT if middle is None else difference(middle, self.unit) + interval_text(low, high, self.unit)


def rate_lines(rows: Iterable[Row], hidden: Collection[str] = ()) -> list[RateLine]:
    """By task a line per format that was tried at several rates: the baseline first, then by the gap at the best rates.

    `rows`: of all runs, since hiding a run must not change what is best.  A format of which all runs are `hidden` has
    no line.
    """
    return [line for own in by_task(rows).values() for line in _of_one_task(own, hidden)]


def _of_one_task(rows: Iterable[Row], hidden: Collection[str]) -> list[RateLine]:
    groups: dict[str, dict[float, list[Row]]] = {}
    for members in by_group(rows).values():
        rates = groups.setdefault(members[0].label_at_any_rate, {})
        rates.setdefault(members[0].learning_rate, []).extend(members)
    whole = {name: {rate: own for rate, own in rates.items() if _is_well(own)} for name, rates in groups.items()}
    tried = [name for name, rates in groups.items() if len(rates) > 1 and whole[name]]
    baselines = [name for name in tried if _is_baseline(groups[name])]
    lines = []
    for name in tried:
        members = [row for own in groups[name].values() for row in own]
        left_out = sum(row.run in hidden for row in members)
        if left_out == len(members):
            continue
        best, grid = _best(whole[name]), tuple(sorted(groups[name]))
        baseline = None if name in baselines else _baseline_of(groups[name], [whole[one] for one in baselines])
        shared = best if baseline is None else _best(baseline)
        theirs = None if baseline is None else baseline[shared]
        lines.append(
            RateLine(
                name=name,
                rates=grid,
                losses=_losses(whole[name]),
                best=best,
                where=_where(best, grid),
                usable=_usable(best, grid, whole[name]),
                shared=_gap(whole[name].get(shared), theirs),
                tuned=_gap(whole[name][best], theirs),
                hidden=left_out,
                unit=loss_unit(members),
            )
        )
    return sorted(lines, key=lambda line: (line.name not in baselines, line.tuned[0] is None, line.tuned[0] or 0.0))


def rates_note(rows: Iterable[Row]) -> str:
    """What the columns mean, in a sentence or two."""
    unit = loss_unit(rows)
    near = f"{USABLE:g} {unit}" if unit == "nats" else f"{100 * _USABLE_SHARE:g} % of the loss"
    return (
        f"Usable: all runs are alive and end within {near} of the format's own best rate. Gaps are paired by seed, "
        "with 95 % t intervals. An optimum at the edge may lie beyond the rates that were tried."
    )


def rates_markdown(rows: Sequence[Row], hidden: Collection[str] = ()) -> str | None:
    """The table of `rate_lines` as markdown with its note; None if no format was tried at several rates."""
    lines = rate_lines(rows, hidden)
    if not lines:
        return None
    cells = ([as_markdown(text) for text in line.cells] for line in lines)
    return f"{table(list(RATE_HEADS), cells, 'lrllrr')}\n\n{rates_note(rows)}"


def _is_baseline(rates: Mapping[float, Sequence[Row]]) -> bool:
    return any(row.is_baseline for own in rates.values() for row in own)


def _baseline_of(
    rates: Mapping[float, Sequence[Row]], baselines: Sequence[Mapping[float, Sequence[Row]]]
) -> Mapping[float, Sequence[Row]] | None:
    """The baseline that has a format's settings but for the learning rate, and runs that it may be compared with."""
    own = [row for members in rates.values() for row in members]
    for baseline in baselines:
        theirs = [row for members in baseline.values() for row in members]
        if _pair_at_any_rate(own) == _pair_at_any_rate(theirs) and paired_runs(own, theirs):
            return baseline
    return None


def _pair_at_any_rate(rows: Sequence[Row]) -> str:
    return "" if rows[0].settings is None else rows[0].settings.pair_at_any_rate


def _is_well(members: Sequence[Row]) -> bool:
    return all(row.final_loss is not None and math.isfinite(row.final_loss) and not row.non_finite for row in members)


def _losses(rates: Mapping[float, Sequence[Row]]) -> dict[float, float]:
    return {rate: mean(row.final_loss or 0.0 for row in own) for rate, own in sorted(rates.items())}


def _best(rates: Mapping[float, Sequence[Row]]) -> float:
    losses = _losses(rates)
    return min(losses, key=losses.__getitem__)


def _where(best: float, rates: Sequence[float]) -> str:
    return "at the lower edge" if best == rates[0] else "at the upper edge" if best == rates[-1] else "interior"


def _usable(best: float, rates: Sequence[float], whole: Mapping[float, Sequence[Row]]) -> tuple[float, float]:
    losses = _losses(whole)
    unit = loss_unit(row for own in whole.values() for row in own)
    most = losses[best] + (USABLE if unit == "nats" else _USABLE_SHARE * abs(losses[best]))
    at = rates.index(best)
    low = high = at
    while low > 0 and losses.get(rates[low - 1], math.inf) <= most:
        low -= 1
    while high + 1 < len(rates) and losses.get(rates[high + 1], math.inf) <= most:
        high += 1
    return rates[low], rates[high]


def _gap(own: Sequence[Row] | None, theirs: Sequence[Row] | None) -> tuple[float | None, float | None, float | None]:
    return interval(list(differences_by_seed(own, theirs).values())) if own and theirs else (None, None, None)
