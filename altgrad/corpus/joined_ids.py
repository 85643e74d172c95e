"""Token ids in several files, read as if they were one: none of them is loaded, only the ids that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class JoinedIds:
    """Arrays of ids one after another, which can be indexed by a slice, or by an array of places."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all ids."""
        return sum(part.nbytes for part in self._parts)

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray | JoinedIds:
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step != 1:
                raise ValueError(f"step {step}: only consecutive ids")
            starts = self._ends - [len(part) for part in self._parts]
            cut = zip(self._parts, starts, strict=True)
            return JoinedIds([part[max(0, start - first) : max(0, stop - first)] for part, first in cut])
        places = np.asarray(where)
        number = np.searchsorted(self._ends, places, side="right")
        found = np.empty(places.shape, np.int64)
        for one in np.unique(number):
            chosen = number == one
            part = self._parts[one]
            found[chosen] = part[places[chosen] - (self._ends[one] - len(part))]
        return found
