"""ULPs moved: how many grid positions the real optimizer step moved each stored weight (DIAG-04).

Counted on the grid of before the step (format and scale), extended beyond its largest value, from index differences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from altgrad.diagnostics.moments import total
from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured


class UlpsMoved(Diagnostic):
    """Mean, median, largest and share of zero of the absolute moves.

    The median is the lower of the two middle values, so that it is a move that a weight has made.
    """

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        moves = {step.name: step.ulps_moved.abs().flatten() for step in steps}
        largest = {name: moved.amax() for name, moved in moves.items()}
        found.add_ratio("ulps_moved_mean", {name: (total(moved), moved.numel()) for name, moved in moves.items()})
        found.add(
            "ulps_moved_median",
            {name: moved.median() for name, moved in moves.items()},
            torch.cat(list(moves.values())).median(),
        )
        found.add("ulps_moved_max", largest, torch.stack(list(largest.values())).amax())
        found.add_ratio(
            "ulps_moved_zero_fraction", {name: (total(moved == 0), moved.numel()) for name, moved in moves.items()}
        )
        return found
