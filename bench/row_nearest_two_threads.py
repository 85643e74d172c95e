"""Rounding to nearest on two threads."""

from bench.harness import Row
from bench.kernels import against_clone

ROW = Row("round 2^24 float32, nearest, 2 threads (x clone)", 1.2, against_clone(number_of_threads=2))
