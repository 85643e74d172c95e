"""The default sweep's wall clock, against the same runs bare, one after another with one thread, divided by the cores.

Bare is the trainer's loop alone, for as many steps as the sweep trained each run; both find the step in the compile
cache.  Minutes long, and on the clock on the wall: nothing else may run on the machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Row
from tune.machine import this_machine
from tune.options import parse_options
from tune.plan import plan_sweep

_SWEEP = Path(__file__).parent.parent / "tune" / "sweep.py"
_BARE = """
import json, sys
from altgrad.training.allocator import keep_freed_memory
from altgrad.training.config import make_config
from altgrad.training.trainer import Trainer
keep_freed_memory()
runs = json.load(sys.stdin)
for fields, steps in runs:
    trainer = Trainer(make_config(fields | {"threads": 1}, "bare"), runs_alike=len(runs))
    for _ in range(steps):
        trainer.step()
"""


def _measure(pairs: int) -> float:
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


ROW = Row("default sweep, wall clock (x its runs bare / cores)", 1.2, _measure, pairs=1, minutes=True)
