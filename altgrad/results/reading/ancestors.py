"""The records of a run with those of the runs that it branched from: the steps before a branch lie in other folders.

`run.json` names the parent's folder as it was when the branch began.  Results are copied and moved, so a parent that is
not there is looked for beside the branch, and above it, where the replays of an explanation lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from altgrad.results.parts import read_table
from altgrad.results.records import START, RecordError, read_start
from altgrad.storage.folder import Folder

_DEEPEST = 50  # branches of branches; a chain of records that is longer was not written by training


def records_until(
    run: Folder, step: int | None = None, columns: Sequence[str] | None = None, depth: int = 0
) -> list[dict[str, float]]:
    """The records of a run up to a step (None: all), ancestors' first; a metric that was not measured is absent.

    columns: the metrics; None: all.  Raises OSError if storage refuses.
    """
    branch, parent = _branch(run), parent_of(run)
    if branch is None or parent is None or depth >= _DEEPEST:
        before = []
    else:
        before = records_until(parent, branch["step"], columns, depth + 1)
    rows = read_table(run, "steps", columns).to_pylist()
    own = [row for row in rows if step is None or row["step"] <= step]
    return before + [{name: value for name, value in row.items() if value is not None} for row in own]


def losses_by_step(run: Folder) -> dict[int, float]:
    """Step -> training loss of a run and its ancestors; errors as for `records_until`."""
    return {int(row["step"]): row["loss"] for row in records_until(run, columns=["loss"]) if "loss" in row}


def losses_before(run: Folder) -> dict[int, float]:
    """Step -> training loss of the ancestors of a run alone; empty if it is no branch."""
    branch, parent = _branch(run), parent_of(run)
    if branch is None or parent is None:
        return {}
    return {s: loss for s, loss in losses_by_step(parent).items() if s <= branch["step"]}


def lost_ancestor(run: Folder, depth: int = 0) -> str | None:
    """The recorded folder of the first ancestor that is not to be found; None if all are there, or there is none."""
    branch, parent = _branch(run), parent_of(run)
    if branch is None or depth >= _DEEPEST:
        return None
    return str(branch["parent"]) if parent is None else lost_ancestor(parent, depth + 1)


def parent_of(run: Folder) -> Folder | None:
    """The folder of the run from which a run branched; None if it is no branch, or its parent is gone."""
    branch = _branch(run)
    if branch is None:
        return None
    recorded = Folder.at(branch["parent"])
    if recorded.has(START):
        return recorded
    above = run.parent.parent  # of RUN/explain/ARM it is RUN
    near = [folder for folder in (run.parent / recorded.name, above) if folder.name == recorded.name]
    return next((folder for folder in near if folder.has(START) and _is_named(folder, branch["run"])), None)


def _is_named(run: Folder, name: str) -> bool:
    try:
        return (read_start(run).get("run") or run.name) == name
    except (FileNotFoundError, RecordError):
        return False


def _branch(run: Folder) -> dict[str, Any] | None:
    """`branch` of a `run.json`; None also if that is missing or unusable: the run's own rows can still be read."""
    try:
        return read_start(run).get("branch")
    except (FileNotFoundError, RecordError):
        return None
