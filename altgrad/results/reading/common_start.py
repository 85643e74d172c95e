"""Two runs can be joined or compared only if the hashes of task, initial weights and data are equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEGINNINGS = {
    "task_hash": "source of the task",
    "initial_weights_hash": "initial weights",
    "batches_hash": "training data",
}


def other_beginning(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first difference between two runs' `run.json`, such as `other training data (batches_hash a, now b)`.

    None if there is no difference.  A hash that one of them lacks, because an older version wrote it, is not compared.
    """
    for key, what in _BEGINNINGS.items():
        first, second = one.get(key), other.get(key)
        if first is not None and second is not None and first != second:
            return f"other {what} ({key} {first}, now {second})"
    return None
