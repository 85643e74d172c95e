"""Rows that measure whole processes: time of the sweep and of its start, memory of a trial."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tune.plan.options import parse_options
from tune.plan.resources.machine import this_machine
from tune.plan.trials import plan_sweep

_SWEEP = Path(__file__).parent.parent / "tune" / "sweep.py"
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
_BARE = """
import json, sys
from altgrad.experiment.allocator import keep_freed_memory
from altgrad.config.train_config import make_config
from altgrad.training.trainer import Trainer
keep_freed_memory()
runs = json.load(sys.stdin)
for fields, steps in runs:
    trainer = Trainer(make_config(fields | {"threads": 1}, "bare"), runs_alike=len(runs))
    for _ in range(steps):
        trainer.step()
"""


def peak_memory(pairs: int) -> list[float]:
    """Peak memory of a compiled trial divided by that of the bare loop without rounding, each in a separate process.

    The batch is the model's default.  A trial adds mainly the guard's snapshot of weights and moments, three times the
    parameters for any batch, so that a smaller batch would give a larger ratio.
    """
    ratios = [_peak("trial") / _peak("bare") for _ in range(pairs + 1)]  # the first ones may compile
    return ratios[1:]


def dry_run(pairs: int) -> list[float]:
    """Processor seconds of `python tune/sweep.py --dry-run`."""
    return [_processor_seconds([sys.executable, str(_SWEEP), "--dry-run"]) for _ in range(pairs)]


def default_sweep(pairs: int) -> list[float]:
    """Wall time of the default sweep, divided by (wall time of its runs bare / number of cores).

    Bare: the trainer's loop alone, one run after another with one thread, for as many steps as the sweep trained; both
    find compiled steps in the cache.  It takes minutes and measures wall time, so that the machine must be idle.
    """
    return [_sweep_against_bare() for _ in range(pairs)]


def _sweep_against_bare() -> float:
    plan = plan_sweep(parse_options([]), this_machine())
    _bare([(trial.config.model_dump(), 1) for trial in plan.trials])  # fills the compile cache
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, _SWEEP, "--results", folder, "--name", "timed", "--wandb", "disabled"]
        swept = _wall_clock(command)
        runs = []
        for end in sorted(Path(folder, "timed").glob("*/end.json")):
            run = json.loads((end.parent / "run.json").read_text())
            runs.append((run["config"], json.loads(end.read_text())["summary"]["steps"]))
    return swept / (_bare(runs) / len(os.sched_getaffinity(0)))


def _bare(runs: list[tuple[dict[str, Any], int]]) -> float:
    """Seconds for (config, steps) of each run in one process."""
    return _wall_clock([sys.executable, "-c", _BARE], json.dumps(runs))


def _wall_clock(command: list[str | Path], text: str = "") -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, input=text, text=True)
    return time.monotonic() - started


def _peak(which: str) -> int:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, which], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def _processor_seconds(command: list[str]) -> float:
    """Processor seconds of a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
