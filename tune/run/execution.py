"""Runs the planned trials through Ray Tune.

Tune schedules, restarts and stops trials.  It keeps none of our checkpoints and results, so that its own state is
temporary, is needed on no other node, and lies in a private folder of this process.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console

from tune.cluster.ray_private import silent_progress
from tune.cluster.ray_trial import plan_of, run_of
from tune.plan.options import SweepOptions, WandbMode
from tune.plan.resources.machine import Resources, Shares
from tune.plan.sweep_record import PlannedSweep
from tune.plan.trial import Trial
from tune.run.end_records import EndRecords
from tune.run.interrupts import Interrupts
from tune.run.stall_watch import StallWatch
from tune.run.stopper import CollapseStopper
from tune.run.trainable import Job, train_trial
from tune.watch.live_display import LiveDisplay
from tune.watch.watchers import Watcher
from tune.watch.webhook_notices import Notices

_GRACE_PERIOD = 100  # steps before asha may stop a trial


class BaselineSparingASHA(AsyncHyperBandScheduler):
    """ASHA on the training loss, which never stops a baseline, because the other runs are compared with it."""

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if plan_of(trial).is_baseline else decision


def run_trials(
    sweep: PlannedSweep,
    trials: Sequence[Trial],
    options: SweepOptions,
    resources: Resources,
    wandb: WandbMode,
    console: Console,
    place: Path,
    interrupts: Interrupts,
    tell: Callable[[str], None],
) -> signal.Signals | None:
    """Run the trials of a sweep to their ends; return the signal that interrupted them, or None.

    `wandb`: mode of the W&B copy.  `place`: a private folder for Tune.  `tell`: called with one line about a failed
    watcher.  Raises StorageRefused if storage does not even accept the end records.
    """
    # Silenced, because `LiveDisplay` reports a trial's death in one line, and the end record has its traceback.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    folder = sweep.folder.patient()
    stopper = CollapseStopper(sweep.trials, folder)
    ends = EndRecords(stopper, folder, options.scheduler, tell)
    callbacks: list[tune.Callback] = [ends, silent_progress()]
    if options.stall_timeout is not None:
        callbacks.append(StallWatch(options.stall_timeout, console))
    with ExitStack() as stack:
        if options.notify is not None:
            notices = Notices(options.notify, folder)
            callbacks.append(stack.enter_context(Watcher(notices, "--notify", tell)))
        progress = LiveDisplay(sweep.trials, folder, console)
        callbacks.append(stack.enter_context(Watcher(progress, "the display on this terminal", tell)))
        tuner = _tuner(_jobs(sweep, trials, resources, wandb), options, resources, place, stopper, callbacks)
        with interrupts.orderly(stopper.interrupt):
            try:
                tuner.fit()
            except TuneError:
                if ends.refused is not None:
                    raise ends.refused from None
                raise
    return stopper.interrupted


def _jobs(sweep: PlannedSweep, trials: Sequence[Trial], resources: Resources, wandb: WandbMode) -> list[Job]:
    """The parameters of each trial's process."""
    alike = (sweep.shares or Shares.of(resources, sweep.trials)).runs_alike
    return [
        Job(
            trial,
            sweep.results,
            sweep.name,
            threads=resources.threads,
            wandb=wandb,
            runs_alike=alike[trial.run],
            workers=resources.workers,
            cpus=resources.cpus,
            gpus=resources.gpus,
            owner=sweep.owner,
        )
        for trial in trials
    ]


def _tuner(
    jobs: Sequence[Job],
    options: SweepOptions,
    resources: Resources,
    place: Path,
    stopper: CollapseStopper,
    callbacks: list[tune.Callback],
) -> tune.Tuner:
    """Tune's description of the experiment: a trial for each job."""
    return tune.Tuner(
        tune.with_resources(train_trial, PlacementGroupFactory([_bundle(resources)])),
        param_space={"job": tune.grid_search([job.to_parameters() for job in jobs])},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(options, [job.trial for job in jobs]),
            max_concurrent_trials=resources.concurrent,
            # With several workers a stopped trial's process must end, so that they end too.
            reuse_actors=resources.workers == 1,
            trial_name_creator=run_of,
            trial_dirname_creator=run_of,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(place / "tune"),
            stop=stopper,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=options.retries),
            verbose=0,
        ),
    )


def _bundle(resources: Resources) -> dict[str, float]:
    """The resources that Tune reserves for a trial's process.  With several workers each reserves its own."""
    if resources.workers > 1:
        return {"memory": 1}  # one byte, because Tune accepts no empty reservation
    return {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})


def _scheduler(options: SweepOptions, trials: Sequence[Trial]) -> TrialScheduler:
    if options.scheduler == "none":
        return FIFOScheduler()
    longest = max(trial.config.max_steps for trial in trials)
    grace = min(_GRACE_PERIOD, longest)
    return BaselineSparingASHA(time_attr="step", metric="loss", mode="min", max_t=longest, grace_period=grace)
