"""Stochastic rounding from a counter-based generator."""

from bench.harness import Row
from bench.kernels import against_clone

ROW = Row("round 2^24 float32, stochastic (x clone)", 1.5, against_clone(rounding="stochastic"))
