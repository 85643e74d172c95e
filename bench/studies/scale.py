"""Measures the overhead of a sweep per trial: 1,000 trials of a stub that trains nothing, interrupted and resumed.

    python -m bench.studies.scale [TRIALS] [CONCURRENT]

All but the training is real: the plan, Ray Tune, the stopper, run folders with their parts and end records.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from altgrad.compare import comparison
from altgrad.results import RunWriter, list_runs
from altgrad.show.sweep_status import sweep_state
from altgrad.storage.folder import Folder

STEPS = 50
_REPORT_INTERVAL = 10


def stub_trial(parameters: dict[str, Any]) -> None:
    """Write a trial's files and reports without a model, with a falling loss."""
    from ray import tune

    from tune.run.trainable import Job

    job = Job.from_parameters(parameters["job"])
    writer = RunWriter((Folder.at(job.results) / job.sweep / job.trial.run).patient())
    writer.start({"run": job.trial.run, "config": job.trial.config.model_dump(), "vocabulary": 64})
    rows: list[dict[str, float]] = []
    for step in range(1, STEPS + 1):
        rows.append({"step": step, "loss": 4.0 - step / STEPS, "validation_loss": 4.0 - step / STEPS})
        writer.step(rows[-1])
        if step == STEPS:
            writer.end("completed", None, {"steps": STEPS, "final_loss": rows[-1]["loss"]})
        if step % _REPORT_INTERVAL == 0:
            status = "completed" if step == STEPS else "running"
            tune.report(
                {"run": job.trial.run, "step": step, "max_steps": STEPS, "status": status, "rows": rows, **rows[-1]}
            )
            rows = []


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Context that prints `what` and its seconds."""
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.1f} s", flush=True)


def main(trials: int = 1000, concurrent: int = 2) -> None:
    """Run, interrupt, resume and read a sweep through its own command; print one line per measurement."""
    from tune import sweep
    from tune.run import execution

    execution.train_trial = stub_trial
    with tempfile.TemporaryDirectory(prefix="altgrad-scale-") as results:
        folder = Folder.at(results) / "scale"
        running = ["--results", results, "--max-concurrent", str(concurrent), "--cpus-per-trial", "1"]
        plan = ["--formats", "BF16", "--seeds", str(trials), "--model", "micro", "--max-steps", str(STEPS)]
        threading.Thread(target=_interrupt_half_way, args=(folder, trials), daemon=True).start()
        with timed("first half, until interrupted"):
            _quietly(lambda: sweep.main([*plan, *running, "--name", "scale", "--wandb", "disabled"]))
        done = _ended(folder)
        print(f"resume: {done} of {trials} are done")
        started = time.monotonic()
        threading.Thread(target=_first_new, args=(folder, done, started), daemon=True).start()
        _quietly(lambda: sweep.main(["--resume", "scale", *running, "--wandb", "disabled"]))
        seconds, again = time.monotonic() - started, trials - done
        print(f"second half: {again} trials in {seconds:.0f} s, {seconds / max(1, again):.2f} s per trial")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"driver memory, peak: {peak:.0f} MiB")
        with timed("status"):
            states = sweep_state(folder)
        with timed("comparison"):
            runs, broken = list_runs(folder)
            rows = comparison(runs)
        assert len(states) == len(rows) == trials and not broken
        assert all(state.status == "completed" for state in states)


def _quietly(command: Callable[[], int]) -> None:
    """Run a command whose own output is not shown."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        command()


def _ended(folder: Folder) -> int:
    return sum(1 for _ in Path(folder.path).glob("*/end.json"))


def _interrupt_half_way(folder: Folder, trials: int) -> None:
    while _ended(folder) < trials // 2:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def _first_new(folder: Folder, before: int, started: float) -> None:
    while _ended(folder) <= before:
        time.sleep(0.1)
    print(f"resume: the first trial has ended after {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
