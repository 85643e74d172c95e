"""Every rule on every run: one row per rule, with its score on the tune and on the test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.detectors.own_rules import ALONE, judged, records
from bench.detectors.ray_rules import asha, plateau
from bench.detectors.recording import Recording
from bench.detectors.rivals import RIVALS, Rival, first_above, gradient_z
from bench.detectors.scoring import Judged, Score, score
from bench.detectors.truth import outcome

FALSE_STOPS = 0.02  # what a rule may have on the tune split when its limit is chosen there
_GRACE = 100  # steps before `altgrad sweep --scheduler asha` may stop a trial
Stops = Mapping[str, int | None]


@dataclass(frozen=True)
class RuleRow:
    """One rule.  group: "altgrad", "published" or "tuned"; limit: None for a rule without one number."""

    name: str
    group: str
    source: str
    limit: float | None
    tune: Score
    test: Score
    stops: Stops


class Field:
    """All recorded runs whose twin is recorded too, with their outcomes.  planned: number of runs of the `command`."""

    def __init__(self, runs: Sequence[Recording], planned: int, command: str) -> None:
        self.planned, self.command = planned, command
        names = {run.plan.name for run in runs}
        runs = [run for run in runs if f"{run.plan.twin}-s{run.plan.seed}" in names]
        self.by_name = {run.plan.name: run for run in runs}
        self.judged = [Judged(run, outcome(run, self._of(run, run.plan.twin))) for run in runs]
        self.tune = [one for one in self.judged if not one.run.plan.is_test]
        self.test = [one for one in self.judged if one.run.plan.is_test]

    def _of(self, run: Recording, scenario: str) -> Recording:
        return self.by_name[f"{scenario}-s{run.plan.seed}"]

    def baseline(self, run: Recording) -> Recording | None:
        """The run whose losses give this one's gap."""
        return None if run.plan.baseline is None else self._of(run, run.plan.baseline)

    def stops(self, rule: Callable[[Recording], int | None]) -> Stops:
        """Where a rule stops each run."""
        return {name: rule(run) for name, run in self.by_name.items()}

    def row(self, name: str, group: str, source: str, limit: float | None, stops: Stops) -> RuleRow:
        """The row of a rule that stopped the runs so."""
        return RuleRow(name, group, source, limit, score(self.tune, stops), score(self.test, stops), stops)


def rows(field: Field) -> list[RuleRow]:
    """All rows: altgrad's rules together, each alone, and the rules of others."""
    return [*own_rows(field), *_ray_rows(field), *(row for rival in RIVALS for row in _rival_rows(field, rival))]


def own_rows(field: Field) -> list[RuleRow]:
    """The rows of altgrad's rules: together, together without a baseline, and each alone."""

    seen = {name: records(run, field.baseline(run)) for name, run in field.by_name.items()}
    blind = {name: records(run, None) for name, run in field.by_name.items()}

    def stops(all_records: Mapping[str, list[Any]], only: str | None = None) -> Stops:
        found = {name: judged(run, all_records[name], only) for name, run in field.by_name.items()}
        return {name: None if verdict is None else verdict[0] for name, verdict in found.items()}

    return [
        field.row("all rules", "altgrad", "altgrad/collapse", None, stops(seen)),
        field.row("all rules, no baseline known", "altgrad", "altgrad/collapse", None, stops(blind)),
        *(field.row(f"`{only}` alone", "altgrad", "altgrad/collapse", None, stops(seen, only)) for only in ALONE),
    ]


def _ray_rows(field: Field) -> list[RuleRow]:
    found = [
        field.row("TrialPlateauStopper", "published", "Ray Tune, its defaults", None, field.stops(plateau)),
        field.row(
            "TrialPlateauStopper, 10 results", "published", "Ray Tune, num_results=10, grace_period=10", None,
            field.stops(lambda run: plateau(run, num_results=10, grace_period=10)),
        ),
    ]  # fmt: skip
    for name, grace in (("ASHA", 1), (f"ASHA, grace period of {_GRACE} steps", _GRACE)):
        stops: dict[str, int | None] = {}
        for seed in sorted({run.plan.seed for run in field.by_name.values()}):
            for twin in sorted({run.plan.twin for run in field.by_name.values()}):  # one loss, one sweep
                runs = [run for run in field.by_name.values() if (run.plan.seed, run.plan.twin) == (seed, twin)]
                stops |= asha(runs, [run for run in runs if run.plan.scenario == twin], grace_period=grace)
        found.append(field.row(name, "published", "Ray Tune, AsyncHyperBandScheduler", None, stops))
    return found


def _rival_rows(field: Field, rival: Rival) -> list[RuleRow]:
    found = []
    if rival.limit is not None:
        stops = field.stops(lambda run: rival.stop(run, rival.limit))
        found.append(field.row(rival.name, "published", rival.source, rival.limit, stops))
    if rival.limits:
        limit = best_limit(field, rival)
        stops = field.stops(lambda run: rival.stop(run, limit))
        found.append(field.row(f"{rival.name}, tuned", "tuned", rival.source, limit, stops))
    return found


def best_limit(field: Field, rival: Rival) -> float:
    """The limit with the highest recall on the tune split at `FALSE_STOPS` at most; of equal ones the earliest.

    If no limit has so few false stops, the one with the fewest.
    """
    tried = []
    fixed = None if rival.scores is gradient_z else {one.name: rival.scores(one.run, 0.0) for one in field.tune}
    for limit in rival.limits:
        scores = fixed or {one.name: rival.scores(one.run, limit) for one in field.tune}
        found = score(field.tune, {name: first_above(of_run, limit) for name, of_run in scores.items()})
        excess = max(0.0, found.false_stops - FALSE_STOPS)
        tried.append((-excess, found.recall, found.saved, limit))
    return max(tried)[-1]
