"""One run of a sweep, and the plan of all of them: plain values that travel to `sweep.json`, to Tune and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from altgrad.compare import Settings
from altgrad.config.train_config import ConfigError, TrainConfig, make_config
from altgrad.text.error_hints import shown
from tune.plan.placement import Expected

_RUN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", re.ASCII)


@dataclass(frozen=True)
class Trial:
    """One run to do: its name, its config after every override, and the run it is compared with.

    `baseline` is the name of the BF16 run of the same seed and settings; None for that run itself and where the
    sweep has none.
    """

    run: str
    config: TrainConfig
    intervention: str = "none"
    baseline: str | None = None

    @property
    def pair(self) -> str:
        """Equal for the runs that one baseline serves."""
        return Settings(self.config.model_dump(), self.intervention).pair

    @property
    def is_baseline(self) -> bool:
        """Whether it is what the others are compared with, see `Settings.is_baseline`."""
        return Settings(self.config.model_dump(), self.intervention).is_baseline

    @property
    def may_end_early(self) -> bool:
        """Whether it is of the kind that collapses more often: no FP32 masters, or no scaling."""
        return not self.config.master_weights or self.config.scaling == "none"

    def to_json(self) -> dict[str, Any]:
        """For `sweep.json` and for Tune: plain values, from which `from_json` makes the same trial."""
        config = self.config.model_dump()
        return {"run": self.run, "intervention": self.intervention, "baseline": self.baseline, "config": config}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], source: str) -> Trial:
        """The trial of `to_json`; `source` names its origin in errors.  Raises ConfigError."""
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
    """The trials in the order in which they start, and what was decided on the way, one sentence each.

    `expected` is what they will take, None where that was not measured.
    """

    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    expected: Expected | None = None

    def timed(self, expected: Expected | None, note: str | None = None) -> SweepPlan:
        """This plan with what its trials take, the longest first behind the baselines, and one more note."""
        notes = self.notes if note is None else (*self.notes, note)
        if expected is None:
            return replace(self, notes=notes)
        pairs = list(zip(self.trials, expected.seconds, strict=True))
        pairs.sort(key=lambda pair: (not pair[0].is_baseline, -pair[1]))  # stable: of equals those that last come first
        seconds = tuple(taken for _, taken in pairs)
        return SweepPlan(tuple(trial for trial, _ in pairs), notes, replace(expected, seconds=seconds))
