"""Rounding, counting overflow, underflow, saturation and non-zero values, and amax, in one pass."""

from altgrad.quantization.compiled import compiled_round_and_count
from bench.harness import Row
from bench.kernels import against_clone

ROW = Row("round with all counts and amax, nearest (x clone)", 1.4, against_clone(round_with=compiled_round_and_count))
