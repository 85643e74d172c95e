"""Rounding with one scale per block of 32, its amax included."""

from bench.harness import Row
from bench.kernels import against_clone

ROW = Row("round with one scale per 32 values (x clone)", 1.8, against_clone(granularity="block"))
