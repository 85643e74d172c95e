"""Reading of the records `run.json`, `end.json` and `sweep.json`: nothing in them is trusted, all checks are here.

A record may be empty, truncated, foreign, of another version or edited by hand.  A reader returns either an object
whose known fields have the declared types, or raises `RecordError`, one line that names the file and the fault.  Fields
that this version does not know are returned unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from altgrad.results.schema import SCHEMA, Status
from altgrad.storage.folder import Folder

START, END, PLAN = "run.json", "end.json", "sweep.json"
_SHOWN = 60  # characters of a wrong value


class RecordError(ValueError):
    """A record that cannot be used; its message is one line."""


def _number(value: Any) -> Any:
    """A number from JSON, which lacks NaN and inf: they are stored as strings."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Annotated[float, BeforeValidator(_number)]


class Record(BaseModel):
    """A JSON object whose declared fields are checked; other fields are kept."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)


class _Config(Record):
    """The fields of a run's config that every comparison needs; `TrainConfig` checks the others when it is made."""

    format: str
    seed: Whole
    max_steps: Count
    learning_rate: Finite
    recipe: str | None = None
    gemms: dict[str, Any] = Field(default_factory=dict)


class _Held(Record):
    cpus: Finite | None = None
    gpus: Finite | None = None


class _Attempt(Record):
    attempt: Count
    seconds: Finite
    resources: _Held | None = None


class BranchOf(Record):
    """`branch` of a `run.json`: the run and step that the run started from, and the fields that differ."""

    parent: str
    run: str
    step: Count
    changes: dict[str, Any] = Field(default_factory=dict)
    forget: list[str] = Field(default_factory=list)


class StartRecord(Record):
    """`run.json`."""

    schema_number: Literal[SCHEMA] = Field(alias="schema")  # type: ignore[valid-type]
    config: _Config
    started: Finite
    attempt: Count = 0
    owner: str | None = None
    run: str | None = None
    sweep: str | None = None
    intervention: str | None = None
    resources: _Held | None = None
    earlier: list[_Attempt] = []
    branch: BranchOf | None = None
    versions: dict[str, Any] | None = None
    host: str | None = None
    device: str | None = None
    git_commit: str | None = None
    workers: Count | None = None
    threads: Count | None = None
    parameters: Count | None = None
    vocabulary: Count | None = None
    unigram_entropy: Finite | None = None
    layers: list[str] | None = None
    initial_weights_hash: str | None = None
    batches_hash: str | None = None
    task_hash: str | None = None
    unit: str | None = None


class _Verdict(Record):
    step: Whole
    rule: str
    metric: str
    value: Number
    limit: Number
    detail: str = ""


class _Summary(Record):
    steps: Count | None = None
    error: str | None = None
    reason: str | None = None
    traceback: str | None = None
    final_loss: Number | None = None
    best_loss: Number | None = None
    final_validation_loss: Number | None = None
    seconds: Number | None = None


class EndRecord(Record):
    """`end.json`.  In an old one every field but the status may be missing; it then stays absent."""

    schema_number: Literal[SCHEMA] = Field(SCHEMA, alias="schema")  # type: ignore[valid-type]
    status: Status
    ended: Finite = 0.0
    verdict: _Verdict | None = None
    summary: _Summary = _Summary()


class _PlannedConfig(Record):
    format: str
    max_steps: Count


class _PlannedRun(Record):
    run: str
    config: _PlannedConfig
    intervention: str = "none"
    baseline: str | None = None


class _Shares(Record):
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    workers: Annotated[int, Field(ge=1, lt=2**31)]
    runs_alike: dict[str, Annotated[int, Field(ge=1, lt=2**31)]] = {}


class _MoreSeeds(Record):
    most: Annotated[int, Field(gt=0)]
    looks: Annotated[int, Field(gt=0)]
    rounds: Annotated[int, Field(ge=0)]


class PlanRecord(Record):
    """`sweep.json`.  `resources`: the CPUs and GPUs of each worker of a trial; an old plan has none.

    `margin`: the difference in loss that does not matter, if it was chosen.  `more_seeds`: of a sweep that adds seeds
    until its verdicts are clear: most seeds, looks at the results, and rounds of seeds that were added.
    """

    schema_number: Literal[SCHEMA] = Field(SCHEMA, alias="schema")  # type: ignore[valid-type]
    runs: list[_PlannedRun]
    resources: _Shares | None = None
    sweep: str | None = None
    created: Finite | None = None
    command: str | None = None
    margin: Annotated[Finite, Field(gt=0)] | None = None
    more_seeds: _MoreSeeds | None = None


def read_start(run: Folder) -> dict[str, Any]:
    """A run's `run.json`.  Raises FileNotFoundError if there is none, RecordError if it is malformed, OSError."""
    return read_record(run, START, StartRecord)


def read_end(run: Folder) -> dict[str, Any] | None:
    """A run's `end.json` with `verdict` and `summary`; None if there is none.  Raises RecordError, OSError."""
    try:
        return {"verdict": None, "summary": {}} | read_record(run, END, EndRecord)
    except FileNotFoundError:
        return None


def read_plan(sweep: Folder) -> dict[str, Any]:
    """A sweep's `sweep.json`.  Raises FileNotFoundError if there is none, RecordError if it is malformed, OSError."""
    return read_record(sweep, PLAN, PlanRecord)


def ended_as(run: Folder) -> Status | None:
    """The status with which a run ended; None if it has not ended, or if its `end.json` is unusable.

    A run without a status is trained again.  Raises OSError if storage refuses.
    """
    try:
        end = read_end(run)
    except (RecordError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None
    return None if end is None else end["status"]


def read_record(folder: Folder, file: str, model: type[Record]) -> dict[str, Any]:
    """Read a JSON file whose declared fields must fit `model`.  Raises FileNotFoundError, RecordError, OSError."""
    try:
        content = folder.read_json(file)
    except ValueError as error:
        raise RecordError(str(error)) from None
    try:
        record = model.model_validate(content)
    except ValidationError as error:
        raise RecordError(f"{folder / file}: {_first(error, content)}") from None
    return record.model_dump(by_alias=True, exclude_unset=True)


def _first(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first fault in one line: the field, its value (shortened), and the expected one."""
    found = error.errors(include_url=False)
    missing = [one["loc"] for one in found if one["type"] == "missing"]
    first = found[0]
    where = ".".join(str(part) for part in first["loc"])
    if where == "schema" and first["loc"] not in missing:
        shown = _cut(content.get("schema"))
        return f"schema {shown}; this version reads schema {SCHEMA}"
    if missing:
        return f"it lacks {', '.join('.'.join(str(part) for part in loc) for loc in missing[:5])}"
    value: Any = content
    for part in first["loc"]:
        try:
            value = value[part]
        except (LookupError, TypeError):  # a part of the location that names a type, not a field
            break
    return f"{where}={_cut(value)}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _cut(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
