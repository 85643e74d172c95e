"""`explanation.json` in a run's folder: the arms of its explanation, what they showed, and the conclusion.

It is written after every arm, so that a reader sees how far an explanation is.  Its fields are declared below; like all
records it is checked when it is read (see `results.records`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from altgrad.explain.arm import ArmKind
from altgrad.explain.conclusion import CauseRule, Confidence
from altgrad.explain.harm import MOST_LEFT
from altgrad.results import SCHEMA
from altgrad.results.records import Count, Finite, Number, Record, read_record
from altgrad.storage.folder import Folder

EXPLANATION = "explanation.json"
ARMS = "explain"  # folder below the run's, with one run folder per arm


class ArmRecord(Record):
    """One arm.  status: `collapsed`, `prevented`, or `failed` with `error`.

    error: also of an unchanged replay that differs from its run, where it names the first number that does.

    step, rule: of its verdict.  loss: mean training loss of the last ten steps up to `loss_step`, which it, the control
    and, if there is one, the BF16 run all reached; `loss_control`, `loss_baseline`: theirs, None on other
    batches.  harm_left: share of the harm that it leaves, see `explain.harm`; None if it collapsed, or where it is not
    measured.
    """

    name: str
    label: str
    kind: ArmKind
    status: Literal["collapsed", "prevented", "failed"]
    replay: Count = 0
    changes: dict[str, Any] = Field(default_factory=dict)
    forget: list[str] = Field(default_factory=list)
    cells: list[list[str]] = Field(default_factory=list)
    repeats: bool | None = None
    step: Count | None = None
    rule: str | None = None
    steps: Count | None = None
    loss: Number | None = None
    loss_step: Count | None = None
    loss_control: Number | None = None
    loss_baseline: Number | None = None
    harm_left: Finite | None = None
    seconds: Number | None = None
    error: str | None = None


class ConclusionRecord(Record):
    """What the arms show so far; see `explain.conclusion`."""

    rule: CauseRule
    sentence: str
    confidence: Confidence
    cells: list[list[str]] = Field(default_factory=list)
    worked: list[str] = Field(default_factory=list)


class ExplanationRecord(Record):
    """The whole file.  start: step of the checkpoint that every replay starts from; until: last step of a replay.

    notes: sentences about how the replays were made.  finished: whether no further arm is planned.
    """

    schema_number: Literal[SCHEMA] = Field(alias="schema")  # type: ignore[valid-type]
    start: Count
    until: Count
    arms: list[ArmRecord]
    conclusion: ConclusionRecord
    notes: list[str] = Field(default_factory=list)
    finished: bool = False
    written: Finite = 0.0


def read_explanation(run: Folder) -> dict[str, Any] | None:
    """The explanation of a run, with all optional fields; None if there is none.  Raises RecordError, OSError."""
    try:
        found = read_record(run, EXPLANATION, ExplanationRecord)
    except FileNotFoundError:
        return None
    return ExplanationRecord.model_validate(found).model_dump(by_alias=True)


def worked_arms(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms that prevented the collapse on the run's own batches, the lowest loss first."""
    found = [
        arm
        for arm in record["arms"]
        if arm["status"] == "prevented" and not arm["replay"] and (arm["harm_left"] or 0.0) <= MOST_LEFT
    ]
    return sorted(found, key=lambda arm: (arm["loss"] is None, arm["loss"] or 0.0))
