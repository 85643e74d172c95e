"""The records of a run with those of the runs that it branched from: the steps before a branch lie in other folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from altgrad.results.parts import read_table
from altgrad.results.records import RecordError, read_start
from altgrad.storage.folder import Folder

_DEEPEST = 50  # branches of branches; a chain of records that is longer was not written by training


def records_until(
    run: Folder, step: int | None = None, columns: Sequence[str] | None = None, depth: int = 0
) -> list[dict[str, float]]:
    """The records of a run up to a step (None: all), ancestors' first; a metric that was not measured is absent.

    columns: the metrics; None: all.  Raises OSError if storage refuses.
    """
    branch = _branch(run)
    if branch is None or depth >= _DEEPEST:
        before = []
    else:
        before = records_until(Folder.at(branch["parent"]), branch["step"], columns, depth + 1)
    rows = read_table(run, "steps", columns).to_pylist()
    own = [row for row in rows if step is None or row["step"] <= step]
    return before + [{name: value for name, value in row.items() if value is not None} for row in own]


def losses_by_step(run: Folder) -> dict[int, float]:
    """Step -> training loss of a run and its ancestors; errors as for `records_until`."""
    return {int(row["step"]): row["loss"] for row in records_until(run, columns=["loss"]) if "loss" in row}


def losses_before(run: Folder) -> dict[int, float]:
    """Step -> training loss of the ancestors of a run alone; empty if it is no branch."""
    branch = _branch(run)
    if branch is None:
        return {}
    return {s: loss for s, loss in losses_by_step(Folder.at(branch["parent"])).items() if s <= branch["step"]}


def _branch(run: Folder) -> dict[str, Any] | None:
    """`branch` of a `run.json`; None also if that is missing or unusable: the run's own rows can still be read."""
    try:
        return read_start(run).get("branch")
    except (FileNotFoundError, RecordError):
        return None
