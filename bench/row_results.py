"""A run with its results folder, collapse detection and last checkpoint, against its bare steps."""

import itertools
import tempfile
from pathlib import Path

from altgrad.training.format_runner import run_format_experiment
from altgrad.training.trainer import Trainer
from bench.harness import Row, ratio
from bench.steps import TINY, config

_STEPS = 500  # as in the default sweep


def _measure(pairs: int) -> float:
    settings = config(**TINY, max_steps=_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        names = itertools.count()

        def steps() -> None:
            trainer = Trainer(settings)
            for _ in range(_STEPS):
                trainer.step()

        return ratio(lambda: run_format_experiment(settings, Path(folder) / str(next(names))), steps, pairs, warm_up=1)


ROW = Row("results, reports and collapse detection (x steps)", 1.03, _measure, pairs=3)
