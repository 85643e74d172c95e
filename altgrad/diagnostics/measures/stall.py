"""Stall: the optimizer intended a change, and the stored weight did not change."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import total


class Stall(Diagnostic):
    """Share of the weights with a non-zero update whose stored value did not change, and the same share of all weights.

    Values are compared, not grid positions, because a new scale gives the same position a new value.
    """

    of_grid = True

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        stalled, unchanged = {}, {}
        for step in steps:
            asked, kept = step.read_update != 0, step.stored_after == step.stored_before
            stalled[step.name] = total(asked & kept), total(asked)
            unchanged[step.name] = total(kept), asked.numel()
        found.add_ratio("stall_rate", stalled)
        found.add_ratio("zero_update_fraction", unchanged)
        return found
