"""Measures the overhead of a sweep per trial: 1,000 trials of a stub that trains nothing, interrupted and resumed.

    python -m bench.scale [TRIALS] [CONCURRENT]

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from altgrad.compare import comparison
from altgrad.config.train_config import TrainConfig
from altgrad.results import RunWriter, list_runs
from altgrad.show.sweep_status import sweep_state
from altgrad.storage.folder import Folder
from tune.plan.options import SweepOptions
from tune.plan.sweep_record import PlannedSweep, create_sweep
from tune.plan.trial import SweepPlan, Trial

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
    """Run, interrupt, resume and read a sweep; print one line per measurement."""
    from tune.cluster.ray_session import local_ray
    from tune.plan.machine import Machine, Resources
    from tune.run import execution
    from tune.run.interrupts import Interrupts

    execution.train_trial = stub_trial
    machine = Machine(concurrent, 0, "")
    with tempfile.TemporaryDirectory(prefix="altgrad-scale-") as results:
        options = SweepOptions(results=results, name="scale")
        config = TrainConfig(model="micro", max_steps=STEPS)
        plan = SweepPlan(tuple(Trial(f"t{seed:05d}", config.altered(seed=seed)) for seed in range(trials)))
        with timed("plan and sweep.json"):
            sweep = create_sweep(options, plan)
        resources = Resources(cpus=1.0, gpus=0.0, concurrent=concurrent)
        quiet = Console(quiet=True)
        with local_ray(machine) as place, Interrupts() as interrupts:
            threading.Thread(target=_interrupt_half_way, args=(sweep, trials), daemon=True).start()
            with timed("first half, until interrupted"):
                execution.run_trials(
                    sweep, sweep.trials, options, resources, "disabled", quiet, place, interrupts, print
                )
        done = trials - len(sweep.unfinished())
        with local_ray(machine) as place, Interrupts() as interrupts:
            started = time.monotonic()
            again = sweep.unfinished()
            print(f"resume: {done} of {trials} are done, known after {time.monotonic() - started:.1f} s")
            watch = threading.Thread(target=_first_new, args=(sweep, again, started), daemon=True)
            watch.start()
            execution.run_trials(sweep, again, options, resources, "disabled", quiet, place, interrupts, print)
            seconds = time.monotonic() - started
            print(
                f"second half: {len(again)} trials in {seconds:.0f} s, {seconds / max(1, len(again)):.2f} s per trial"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"driver memory, peak: {peak:.0f} MiB")
        with timed("status"):
            states = sweep_state(sweep.folder)
        with timed("comparison"):
            runs, broken = list_runs(sweep.folder)
            rows = comparison(runs)
        assert len(states) == len(rows) == trials and not broken
        assert all(state.status == "completed" for state in states)


def _interrupt_half_way(sweep: PlannedSweep, trials: int) -> None:
    while sum(1 for _ in Path(sweep.folder.path).glob("*/end.json")) < trials // 2:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def _first_new(sweep: PlannedSweep, again: list[Trial], started: float) -> None:
    while not any((sweep.folder / trial.run).has("end.json") for trial in again[:8]):
        time.sleep(0.1)
    print(f"resume: the first trial has ended after {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
