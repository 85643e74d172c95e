"""Seconds until `python tune/sweep.py --dry-run` has said what it would do."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from bench.harness import Row

_SWEEP = Path(__file__).parent.parent / "tune" / "sweep.py"


def _measure(pairs: int) -> float:
    return statistics.median(_seconds() for _ in range(pairs))


def _seconds() -> float:
    """Processor time of the child: it waits for nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, _SWEEP, "--dry-run"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


ROW = Row("sweep.py --dry-run (seconds)", 3.0, _measure, pairs=3)
