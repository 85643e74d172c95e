"""Stall: the optimizer asked for a change and the stored weight did not move."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.diagnostics.moments import total
from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured


class Stall(Diagnostic):
    """Share of weights with a non-zero update that kept their grid position, and of those whose value stayed the same.

    The two differ where nothing was asked for, and where a new scale changed a value that kept its position.
    """

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        stalled, unchanged = {}, {}
        for step in steps:
            asked = step.update != 0
            stalled[step.name] = total(asked & (step.ulps_moved == 0)), total(asked)
            unchanged[step.name] = total(step.stored_after == step.stored_before), asked.numel()
        found.add_ratio("stall_rate", stalled)
        found.add_ratio("zero_update_fraction", unchanged)
        return found
