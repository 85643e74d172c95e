"""What a run tells its caller, while it goes on and when it has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from altgrad.results import Status, Verdict
from altgrad.storage.folder import Folder


@dataclass(frozen=True)
class Report:
    """What a run tells its caller: the records of the steps since the last report, and where it stands."""

    step: int
    max_steps: int
    rows: list[Mapping[str, float]]
    status: Status
    verdict: Verdict | None


@dataclass(frozen=True)
class ExperimentResult:
    """How a run ended; losses in nats.  A loss that was not measured is None."""

    run: str
    folder: Folder
    status: Status
    verdict: Verdict | None
    steps: int
    final_loss: float | None
    best_loss: float | None
    final_validation_loss: float | None
    seconds: float


class LossSummary:
    """Final, best and validation loss of a run so far; None where none was finite or measured."""

    def __init__(self) -> None:
        self.final: float | None = None
        self.best: float | None = None
        self.validation: float | None = None

    def add(self, record: Mapping[str, float]) -> None:
        self.final = record["loss"]
        if math.isfinite(record["loss"]):
            self.best = record["loss"] if self.best is None else min(self.best, record["loss"])
        self.validation = record.get("validation_loss", self.validation)

    def state_dict(self) -> dict[str, float | None]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        vars(self).update(state)
