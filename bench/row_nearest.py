"""Rounding to nearest, ties to even."""

from bench.harness import Row
from bench.kernels import against_clone

ROW = Row("round 2^24 float32, nearest (x clone)", 1.2, against_clone())
