"""Processor seconds in which a server that has just started shows the sweep page of 500 runs of 10,000 steps."""

from bench.dashboard import open_table, processor_seconds, results
from bench.harness import Row


def _measure(pairs: int) -> float:
    folder = results()
    return processor_seconds(lambda: open_table(folder), pairs)


ROW = Row("dashboard: sweep page of 500 runs, cold (seconds)", 3.0, _measure, pairs=3)
