"""Counts of a rounding by name."""

from torch import Tensor, tensor

from altgrad.quantization.kernel.counting.counters import COUNTERS


def row_of_counts(**named: float) -> Tensor:
    """(counters,) in the order of `COUNTERS`; those that are not named are 0."""
    return tensor([float(named.get(name, 0)) for name in COUNTERS])
