"""`--seeds auto`: which seeds to add to a sweep whose verdicts are not clear yet.

Every group begins with three seeds.  After each round the groups that are undecided get as many seeds as their verdict
says would decide them, and in the last round as many as allowed.  A group that would need more than twice the seeds
allowed is hopeless and gets none; one with a dead run is decided.  Looking several times and stopping at the first
clear verdict would make wrong ones likelier, so the number of looks is fixed and each has its share of the 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from altgrad.compare import Row, by_group
from altgrad.compare.parity.verdict import ENOUGH_SEEDS, Parity
from tune.plan.options import SweepError, SweepOptions
from tune.plan.trial import Trial
from tune.plan.trials import completed_plan

LOOKS = 3
_HOPELESS = 2  # times the allowed seeds: the spread of three seeds is known roughly


@dataclass(frozen=True)
class MoreSeeds:
    """The state of the rule: most seeds of a group, looks in all, and rounds of seeds that were added."""

    most: int
    looks: int = LOOKS
    rounds: int = 0

    @classmethod
    def of(cls, options: SweepOptions) -> MoreSeeds | None:
        """The rule that the options ask for; None without `--seeds auto`.  Raises SweepError for options at odds."""
        if options.most_seeds is None:
            if options.max_seeds is not None:
                raise SweepError(f"--max-seeds {options.max_seeds}: only with --seeds auto")
            return None
        if options.no_baseline:
            raise SweepError("--seeds auto --no-baseline: without BF16 runs there is nothing to decide")
        if options.most_seeds < ENOUGH_SEEDS:
            raise SweepError(f"--max-seeds {options.most_seeds}: at least {ENOUGH_SEEDS}, with which the sweep begins")
        return cls(options.most_seeds)

    def note(self, trials: Sequence[Trial], options: SweepOptions) -> str:
        """What will happen, in one sentence for the plan."""
        within = "the default margin" if options.margin is None else f"a margin of {options.margin:g}"
        largest = len(trials) * self.most // ENOUGH_SEEDS
        return (
            f"seeds auto: begins with {ENOUGH_SEEDS} seeds, then adds seeds, BF16 included, in at most "
            f"{self.looks - 1} rounds until every group is decided within {within} or has {self.most}; "
            f"at most {largest} trials"
        )

    def next_round(self, trials: Sequence[Trial], rows: Sequence[Row]) -> tuple[list[Trial], list[str]]:
        """The trials to add to those of the sweep, given its results, and a sentence per group that is undecided."""
        planned = {trial.run: trial for trial in trials}
        added: list[Trial] = []
        said = []
        for members in by_group(rows).values():
            own = [planned[row.run] for row in members if row.run in planned]
            parity = members[0].parity
            if not own or parity is None or parity.verdict != "undecided":
                continue
            seeds = self._target(parity)
            name = members[0].group_label
            if seeds is None or seeds <= len(own):
                said.append(f"{name} stays undecided with {parity.n} seeds: {parity.sentence}")
                continue
            said.append(f"{name}: {parity.n} seeds are too few, goes on to {seeds}")
            added += _with_seeds(own, seeds - len(own))
        return completed_plan(trials, added), said

    def _target(self, parity: Parity) -> int | None:
        """The seeds that an undecided group should have next; None if it is hopeless or the rounds are over."""
        if self.rounds >= self.looks - 1 or parity.ended_early:
            return None
        if parity.seeds is None or parity.seeds > _HOPELESS * self.most:
            return None
        return self.most if self.rounds == self.looks - 2 else min(parity.seeds, self.most)


def _with_seeds(own: Sequence[Trial], count: int) -> list[Trial]:
    """`count` further trials of a group, with the seeds after its last one."""
    last = max(own, key=lambda trial: trial.config.seed)
    found = []
    for seed in range(last.config.seed + 1, last.config.seed + 1 + count):
        before, _, after = last.run.rpartition(f"-s{last.config.seed}")
        run = f"{before}-s{seed}{after}" if before else f"{last.run}-s{seed}"
        found.append(replace(last, run=run, config=last.config.altered(seed=seed), baseline=None))
    return found
