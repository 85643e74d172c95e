"""Processor seconds that 60 curves of 10,000 steps on one chart take beyond the page."""

from bench.dashboard import curves, open_sweep, processor_seconds, results
from bench.harness import Row


def _measure(pairs: int) -> float:
    sweep, rows = open_sweep(results())  # of its own: only the first time counts
    return processor_seconds(lambda: curves(sweep, rows), 1)


ROW = Row("dashboard: 60 curves on one chart (seconds)", 1.5, _measure, pairs=1)
