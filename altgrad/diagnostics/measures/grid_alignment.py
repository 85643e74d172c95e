"""Grid alignment: distance of the optimizer's weights from the rounded values that the GEMMs read.

Without master weights each weight is on its grid by construction; it is measured all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import ValueSums, mask, only, total
from altgrad.quantization.kernel.round import ulp


class GridAlignment(Diagnostic):
    """|w - Q(w)| before the step: in ULPs of the scaled weight, relative to |w|, and the share of weights with 0.

    Rounding to nearest errs by at most half a ULP; a larger error means a weight beyond the largest finite value.
    """

    of_grid = True

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found = Measured()
        parts, relative, on_grid = {}, {}, {}
        for step in steps:
            weight, stored = step.read_weight, step.stored_before
            error = (weight - stored).abs()
            in_ulps = error * step.inverse_scale / ulp(step.scaled_weight, step.tensors)
            parts[step.name] = ValueSums.of(in_ulps)
            nonzero = weight != 0
            relative[step.name] = total(only(mask(nonzero), error / weight.abs())), total(nonzero)
            on_grid[step.name] = total(weight == stored), weight.numel()
        whole = ValueSums.pool(parts.values())
        found.add("grid_error_mean", {name: part.mean for name, part in parts.items()}, whole.mean)
        found.add("grid_error_max", {name: part.largest for name, part in parts.items()}, whole.largest)
        found.add("grid_error_std", {name: part.std for name, part in parts.items()}, whole.std)
        found.add_ratio("grid_error_relative", relative)
        found.add_ratio("on_grid_fraction", on_grid)
        return found
