"""Reports of a run to its caller, and its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altgrad.results import Status, Verdict
from altgrad.storage.folder import Folder


@dataclass(frozen=True)
class Report:
    """A report of a run to its caller: the records since the last report (`rows`), and the present status.

    warning: the sentence of the run's warning (see `CollapseForecast`); None without one.
    """

    step: int
    max_steps: int
    rows: list[Mapping[str, float]]
    status: Status
    verdict: Verdict | None
    warning: str | None = None
    loss_unit: str = "nats"


@dataclass(frozen=True)
class ExperimentResult:
    """The end of a run; losses in `loss_unit`, "" if it is unknown.  A loss that was not measured is None."""

    run: str
    folder: Folder
    status: Status
    verdict: Verdict | None
    steps: int
    final_loss: float | None
    best_loss: float | None
    final_validation_loss: float | None
    seconds: float
    loss_unit: str = "nats"

    def summary(self) -> dict[str, Any]:
        """The numbers of the end, as the run's end record has them."""
        names = ("steps", "final_loss", "best_loss", "final_validation_loss", "seconds")
        return {name: getattr(self, name) for name in names}


class LossSummary:
    """Final, best finite and newest validation loss of a run so far; None if there was none."""

    def __init__(self) -> None:
        self.final: float | None = None
        self.best: float | None = None
        self.validation: float | None = None

    def add(self, record: Mapping[str, float]) -> None:
        """Take in a step's record, which has a `loss` and may have a `validation_loss`."""
        self.final = record["loss"]
        if math.isfinite(record["loss"]):
            self.best = record["loss"] if self.best is None else min(self.best, record["loss"])
        self.validation = record.get("validation_loss", self.validation)

    def state_dict(self) -> dict[str, float | None]:
        """The three losses by name."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Continue from a state of `state_dict`."""
        vars(self).update(state)
