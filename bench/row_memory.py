"""Peak memory of a trial, compiled, against the bare loop without rounding; each in a process of its own.

At the model's own batch.  What a trial adds is mostly the guard's copy of the last good weights and moments, three
times the parameters whatever the batch, so that at a batch of a few tokens it weighs more.
"""

import subprocess
import sys

from bench.harness import Row

_PROGRAM = """
import resource, sys
from altgrad.training.trainer import Trainer
from bench.steps import bare_step, config
trainer = Trainer(config(model="medium")) if sys.argv[1] == "trial" else None
if trainer is not None:
    step = trainer.step
else:
    from altgrad.training.data import TextBatches, load_corpus
    settings = config(model="medium")
    step = bare_step(settings, TextBatches(load_corpus(settings), settings, settings.shape.block_size), False)
for _ in range(2):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _measure(pairs: int) -> float:
    ratios = [_peak("trial") / _peak("bare") for _ in range(pairs + 1)]  # the first ones may compile
    return ratios[-1]


def _peak(which: str) -> int:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, which], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


ROW = Row("memory of a trial, 26M parameters (x bare)", 1.25, _measure, pairs=1)
