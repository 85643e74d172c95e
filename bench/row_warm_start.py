"""Seconds until a second trial of a process, of another format and seed, has done its first step."""

import itertools
import statistics
import time

from altgrad.training.trainer import Trainer
from bench.harness import Row
from bench.steps import TINY, config

_FORMATS = itertools.cycle(["E5M2", "E3M4", "BF16"])


def _measure(pairs: int) -> float:
    Trainer(config(**TINY)).step()  # compiles, or finds what was compiled on this machine
    return statistics.median(_seconds(seed) for seed in range(2, 2 + pairs))


def _seconds(seed: int) -> float:
    started = time.process_time()
    Trainer(config(**TINY, seed=seed, format=next(_FORMATS))).step()
    return time.process_time() - started


ROW = Row("second trial of a process, until its first step is done (seconds)", 2.0, _measure, pairs=5)
