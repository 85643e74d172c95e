"""Processor seconds of a look at 500 runs that finds nothing new."""

from bench.dashboard import look_again, opened, processor_seconds
from bench.harness import Row


def _measure(pairs: int) -> float:
    sweep, _ = opened()
    return processor_seconds(lambda: look_again(sweep), pairs)


ROW = Row("dashboard: a look that finds nothing new (seconds)", 0.01, _measure, pairs=21)
