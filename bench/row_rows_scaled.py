"""Rounding with one scale per row, its amax included."""

from bench.harness import Row
from bench.kernels import against_clone

ROW = Row("round with one scale per row (x clone)", 1.8, against_clone(granularity="row"))
