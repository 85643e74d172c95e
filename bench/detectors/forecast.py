"""Which stored diagnostic announces a collapse, and how many steps before the verdict.

A signal is a metric as it is, or divided by the median of its own earlier values, and either a high or a low value is
bad.  A run's score is the worst value that it has before the verdict of the collapse rules, or, if it has none, in the
whole run: a healthy run has more time to be alarming, which makes the comparison conservative.  Which run collapsed is
a matter of its outcome, not of the rules.  Steps before the end of warm-up and before a late fault are left out, since
nothing is wrong then.  The AUC is the chance that a collapsed run scores higher than a healthy one; the limit is that
with 5 % false alarms on the tune split, and the lead is the number of steps from the first alarm to the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from altgrad.metrics import METRICS
from bench.detectors.scoring import Judged

FALSE_ALARMS = 0.05
HISTORY = 3  # earlier values that a ratio needs
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Signal:
    """A reading of a metric.  form: "value" or "ratio" (to the median of its earlier values); bad: "high" or "low"."""

    metric: str
    form: str
    bad: str

    def points(self, one: Judged, end: int | None) -> Points:
        """(step, badness) of every measurement that counts for a run, in order; end: the step of its verdict."""
        run, found, before = one.run, [], []
        last = run.steps if end is None else end - 1
        first = max(run.plan.config().warmup_steps + 1, run.plan.onset if one.outcome.kind == "collapsed" else 1)
        for row in run.rows:
            value = row.get(self.metric)
            if value is None or row["step"] > last:
                continue
            read = self._read(value, before)
            if math.isfinite(value):
                before.append(value)
            if read is not None and row["step"] >= first:
                found.append((row["step"], read))
        return found

    def _read(self, value: float, before: Sequence[float]) -> float | None:
        sign = 1.0 if self.bad == "high" else -1.0
        if not math.isfinite(value):
            return math.inf
        if self.form == "value":
            return sign * value
        middle = median(before[-50:]) if len(before) >= HISTORY else 0.0
        return sign * value / middle if middle > 0 else None


@dataclass(frozen=True)
class Forecast:
    """What a signal foretells.  limit: of the badness.  alarms: (collapsed runs alarmed in time, all of them).

    false: (healthy runs alarmed, all of them).  leads: of the runs alarmed in time, in steps.
    """

    signal: Signal
    limit: float
    auc: float
    alarms: tuple[int, int]
    false: tuple[int, int]
    leads: tuple[int, ...]

    @property
    def lead(self) -> float | None:
        return median(self.leads) if self.leads else None


def signals() -> Iterator[Signal]:
    """All readings of all metrics that may indicate trouble."""
    for metric in METRICS.values():
        if metric.is_signal and "step" in metric.levels and metric.name not in ("validation_loss", "gap_to_baseline"):
            for form in ("value", "ratio"):
                for bad in ("high", "low"):
                    yield Signal(metric.name, form, bad)


def auc(bad: Sequence[float], good: Sequence[float]) -> float:
    """The chance that a value of `bad` is above one of `good`, ties counted half; NaN without values."""
    if not bad or not good:
        return math.nan
    wins = sum((a > b) + 0.5 * (a == b) for a in bad for b in good)
    return wins / (len(bad) * len(good))


def limit_of(good: Sequence[float]) -> float:
    """The smallest score of `good` above which at most 5 % of them lie."""
    return sorted(good)[math.ceil((1 - FALSE_ALARMS) * len(good)) - 1]


def forecast(
    signal: Signal, runs: Sequence[Judged], ends: Mapping[str, int | None], limit: float | None = None
) -> Forecast | None:
    """A signal on these runs; ends: the steps of their verdicts by name; limit: None chooses it here.

    None if the signal has no values in one of the groups.
    """
    scored: list[tuple[Judged, Points]] = [(one, signal.points(one, ends[one.name])) for one in runs]
    worst = {
        kind: [max(value for _, value in points) for one, points in scored if points and one.outcome.kind == kind]
        for kind in ("collapsed", "healthy")
    }
    if not worst["collapsed"] or not worst["healthy"]:
        return None
    limit = limit_of(worst["healthy"]) if limit is None else limit
    alarms: dict[Any, list[Any]] = {"collapsed": [], "healthy": []}
    for one, points in scored:
        if one.outcome.kind in alarms:
            alarms[one.outcome.kind].append((one, next((step for step, value in points if value > limit), None)))
    leads = [(ends[one.name] or one.run.steps) - step for one, step in alarms["collapsed"] if step is not None]
    false = sum(step is not None for _, step in alarms["healthy"])
    return Forecast(
        signal, limit, auc(worst["collapsed"], worst["healthy"]), (len(leads), len(alarms["collapsed"])),
        (false, len(alarms["healthy"])), tuple(sorted(leads)),
    )  # fmt: skip


def forecasts(
    tune: Sequence[Judged], test: Sequence[Judged], ends: Mapping[str, int | None]
) -> list[tuple[Forecast, Forecast]]:
    """(on the tune split, on the test split with the limit of the former): the best reading of each metric.

    Best: the most notice on the tune split at 5 % false alarms, which is the sum of the leads; then the AUC there.
    """
    best: dict[str, Forecast] = {}
    for signal in signals():
        found = forecast(signal, tune, ends)
        if found is not None:
            before = best.get(signal.metric)
            if before is None or _order(found) > _order(before):
                best[signal.metric] = found
    pairs = [(found, forecast(found.signal, test, ends, found.limit)) for found in best.values()]
    return sorted([(a, b) for a, b in pairs if b is not None], key=lambda pair: _order(pair[0]), reverse=True)


def _order(found: Forecast) -> tuple[int, float]:
    return sum(found.leads), found.auc
