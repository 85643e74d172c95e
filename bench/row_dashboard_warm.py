"""Processor seconds of a click on the sweep page of 500 runs."""

from bench.dashboard import opened, processor_seconds
from bench.harness import Row
from dashboard.table import run_frame


def _measure(pairs: int) -> float:
    sweep, rows = opened()
    run_frame(rows, sweep, sparklines=False)
    return processor_seconds(lambda: run_frame(rows, sweep, sparklines=False), pairs)


ROW = Row("dashboard: sweep page of 500 runs, warm (seconds)", 0.3, _measure, pairs=11)
