"""Weight decay that rounding drops: a decay of 1e-5 of the weight is far below half an ULP of an 8-bit weight."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.diagnostics.protocol import Diagnostic, LayerStep, Measured
from altgrad.diagnostics.value_statistics import total
from altgrad.quantization.kernel.round import round_magnitude


class DecayLost(Diagnostic):
    """Share of the non-zero stored weights that nearest rounding would put back where they were if decay alone acted.

    Measured on the grid and scale of before the step: round(w - learning rate x weight decay x w) = w.  Without master
    weights only; layers without decay are left out.  What a gradient adds in the same step may carry a decay over.
    """

    def measure(self, steps: Sequence[LayerStep]) -> Measured:
        found, parts = Measured(), {}
        for step in steps:
            if not step.decay:
                continue
            weight = step.scaled_weight
            kept = round_magnitude(weight - step.decay * weight, step.tensors, "nearest") == weight.abs()
            parts[step.name] = total(kept & (weight != 0)), total(weight != 0)
        if parts:
            found.add_ratio("decay_lost", parts)
        return found
