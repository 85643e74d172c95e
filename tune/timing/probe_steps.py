"""One process of a probe: trains a few steps of a trial in the way of a sweep's worker, and prints their times.

stdin:  a JSON line (config, threads, runs_alike, window: seconds per measurement, spawned: time at which this process
        was started), and later the line `go`
stdout: `= ready` when everything is compiled, and after `go` a JSON line with the fields of `StepTimes`
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from altgrad.config.train_config import TrainConfig, make_config
from altgrad.experiment.allocator import keep_freed_memory
from altgrad.experiment.checkpoints.checkpoint import save_checkpoint
from altgrad.storage.folder import Folder
from altgrad.training.compile.policy import How
from altgrad.training.trainer import Trainer

_LEAST = 3  # repetitions of each measurement, also if they take longer than the window


def main() -> None:
    """Measure the trial that stdin describes.  An error is printed as one line, with exit code 1."""
    job = json.loads(sys.stdin.readline())
    config = make_config(job["config"], source="probe")
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    try:
        first = Trainer(config, runs_alike=job["runs_alike"])
        first.step()
        start = time.time() - job["spawned"]
        _say("ready")
        if sys.stdin.readline().strip() == "go":
            _say(json.dumps({"start": start, **_times(config, first.compiled, job["window"])}))
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        sys.exit(" ".join(str(error).split()) or type(error).__name__)


def _times(config: TrainConfig, compiled: How, window: float) -> dict[str, float]:
    """Seconds of each part, for a second trial in this process, because most trials of a sweep are not the first."""
    diagnosed = config.diagnostic_interval
    # max_steps is raised so that step 1 is not the last one, which is always diagnosed; validation is timed separately
    steady = config.altered(max_steps=max(config.max_steps, 2 * diagnosed), eval_interval=10**9)
    started = _now()
    trainer = Trainer(steady, compiled_before=compiled)
    trainer.step()
    setup = _now() - started

    def step(number: int) -> Callable[[], Any]:
        def train() -> None:
            trainer.step_number = number - 1
            trainer.step()

        return train

    times = {"setup": setup, "step": _median(step(1), window), "diagnosis": _median(step(diagnosed), window)}
    times["validation"] = _median(trainer.validation_loss, window)
    with tempfile.TemporaryDirectory(prefix="altgrad-probe-") as folder:
        place = Folder.at(folder)
        times["checkpoint"] = _median(lambda: save_checkpoint(place, 1, {"trainer": trainer.state_dict()}), window)
    return times


def _median(act: Callable[[], Any], window: float) -> float:
    """Median seconds of calling `act`, repeated for `window` seconds; includes the GPU's work."""
    taken: list[float] = []
    until = _now() + window
    while len(taken) < _LEAST or _now() < until:
        started = _now()
        act()
        taken.append(_now() - started)
    return statistics.median(taken)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _say(line: str) -> None:
    print(f"= {line}", flush=True)


if __name__ == "__main__":
    main()
