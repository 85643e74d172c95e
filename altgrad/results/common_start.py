"""What two runs must have begun with to be joined or compared: the same weights and the same data, by their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEGINNINGS = {"initial_weights_hash": "initial weights", "batches_hash": "training data"}


def other_beginning(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """`other training data (batches_hash a, now b)` where two runs' `run.json` differ so, else None.

    A hash that one of them lacks (an older version) is no difference.
    """
    for key, what in _BEGINNINGS.items():
        first, second = one.get(key), other.get(key)
        if first is not None and second is not None and first != second:
            return f"other {what} ({key} {first}, now {second})"
    return None
