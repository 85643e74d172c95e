"""ULPs moved: the number of grid positions by which the real optimizer step moved each stored weight.

It is the difference of two indices on the grid (format and scale) before the step, which is continued beyond its
largest value (see `LayerStep.ulps_moved`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import total


class UlpsMoved(Diagnostic):
    """Mean, median, maximum and share of zeros of the absolute moves.

    Of an even number of moves the median is the lower of the two middle ones, so that it is a whole number.
    """

    of_grid = True

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
