"""One run of a sweep, and the plan of all runs, as plain values that `sweep.json` and Tune can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from altgrad.compare import Settings
from altgrad.config.train_config import ConfigError, TrainConfig, make_config
from altgrad.text.error_hints import shown
from tune.plan.resources.placement import Expected

_RUN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", re.ASCII)


@dataclass(frozen=True)
class Trial:
    """One planned run: its name, its config with all overrides, and the run with which it is compared.

    `baseline`: name of the BF16 run with the same seed and settings; None for that run itself, or if there is none.
    """

    run: str
    config: TrainConfig
    intervention: str = "none"
    baseline: str | None = None

    @property
    def pair(self) -> str:
        """A key that is equal for all runs with the same baseline."""
        return Settings(self.config.model_dump(), self.intervention).pair

    @property
    def kin(self) -> str:
        """A key that is equal for all runs that differ in nothing but the seed."""
        return Settings(self.config.model_dump(), self.intervention).group

    @property
    def is_baseline(self) -> bool:
        """Whether other runs are compared with this one, see `Settings.is_baseline`."""
        return Settings(self.config.model_dump(), self.intervention).is_baseline

    @property
    def may_end_early(self) -> bool:
        """Whether it has no FP32 master weights or no scaling: such runs collapse more often."""
        return not self.config.master_weights or self.config.scaling == "none"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `sweep.json` and for Tune, from which `from_json` makes the same trial."""
        config = self.config.model_dump()
        return {"run": self.run, "intervention": self.intervention, "baseline": self.baseline, "config": config}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], source: str) -> Trial:
        """The trial from the values of `to_json`; `source` names their origin in errors.  Raises ConfigError."""
        baseline = fields.get("baseline")
        for name in (fields["run"], baseline):
            if name is not None and not _RUN.fullmatch(name):  # it becomes a folder's name
                raise ConfigError(
                    f"{source}: run={shown(name)}: letters, digits, '.', '_', '+' and '-', no '.' in front"
                )
        config = make_config(fields["config"], source=f"{source}: {fields['run']}")
        return cls(fields["run"], config, fields.get("intervention", "none"), baseline)


@dataclass(frozen=True)
class SweepPlan:
    """The trials in the order in which they start; `notes`: one sentence per decision of the planning.

    `expected`: the expected seconds of the trials; None if they were not measured.
    """

    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    expected: Expected | None = None

    def timed(self, expected: Expected | None, note: str | None = None) -> SweepPlan:
        """This plan with the expected seconds, sorted by them (baselines first, then longest), and one more note."""
        notes = self.notes if note is None else (*self.notes, note)
        if expected is None:
            return replace(self, notes=notes)
        pairs = list(zip(self.trials, expected.seconds, strict=True))
        pairs.sort(key=lambda pair: (not pair[0].is_baseline, -pair[1]))  # stable: of equals those that last come first
        seconds = tuple(taken for _, taken in pairs)
        return SweepPlan(tuple(trial for trial, _ in pairs), notes, replace(expected, seconds=seconds))
