"""Distribution of a layer's weights and gradients: counts per binade, and a sample of values, for the `tensors` table.

Counts per binade are enough to tell how much of a tensor another format would lose at either end of its range.  The
sample, always taken at the same positions, shows single values over time.  Site `gradient` means here the gradient of
the weight, as the optimizer used it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.diagnostics.protocol import LayerStep
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

SAMPLE = 64
_LOWEST, _HIGHEST = -149, 127  # floor(log2 |x|) of float32 values, subnormals included
_BINS = _HIGHEST - _LOWEST + 1
_BIAS, _NON_FINITE_FIELD = 1023, 0x7FF  # of float64's exponent field
_ZEROS, _NON_FINITE = _BINS, _BINS + 1  # positions of these counts


class Histograms:
    """Histogram and sample of each layer's weight before the step and of the weight's gradient."""

    def __init__(self, layers: Mapping[str, RoundedGemm]) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        self._positions = {}
        for name, layer in layers.items():
            size = layer.weight.numel()
            if size > SAMPLE:
                positions = torch.randint(size, (SAMPLE,), generator=generator, dtype=torch.int64, device="cpu")
            else:
                positions = torch.arange(size, dtype=torch.int64, device="cpu")
            self._positions[name] = positions.to(layer.weight.device)

    def measure(self, steps: Sequence[LayerStep]) -> dict[tuple[str, str], Tensor]:
        """By layer and site a 1-d float64 tensor: counts per exponent, zeros, non-finite values, then the sample."""
        return {
            (step.name, site): torch.cat([counts(x).double(), x.flatten()[self._positions[step.name]].double()])
            for step in steps
            for site, x in (("weight", step.weight_before), ("gradient", step.gradient.float()))
        }


def counts(x: Tensor) -> Tensor:
    """Numbers of float32 values with floor(log2 |x|) = -149 ... 127, of zeros, of non-finite values; (279,) int64."""
    # in float64 every float32 value but zero is normal: its exponent field is its exponent
    field = (x.flatten().double().view(torch.int64) >> 52) & _NON_FINITE_FIELD
    by_field = torch.zeros(_NON_FINITE_FIELD + 1, dtype=torch.int64, device=x.device)
    by_field.scatter_add_(0, field, torch.ones_like(field))
    return torch.cat([by_field[_BIAS + _LOWEST : _BIAS + _HIGHEST + 1], by_field[:1], by_field[_NON_FINITE_FIELD:]])


def row(values: Sequence[float]) -> dict[str, Any]:
    """The columns of the `tensors` table, from the values of `Histograms.measure` on the host."""
    exponents = [int(value) for value in values[:_BINS]]
    filled = [place for place, count in enumerate(exponents) if count] or [0]
    return {
        "first_exponent": _LOWEST + filled[0],
        "exponents": exponents[filled[0] : filled[-1] + 1],
        "zeros": int(values[_ZEROS]),
        "non_finite": int(values[_NON_FINITE]),
        "sample": list(values[_NON_FINITE + 1 :]),
    }
