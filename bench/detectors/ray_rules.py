"""Ray's own classes, driven by recorded runs: the plateau stopper and ASHA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.stopper import TrialPlateauStopper

from bench.detectors.recording import Recording

REPORTED = 10  # steps between the reports of a sweep


def plateau(run: Recording, **settings: Any) -> int | None:
    """The step at which `TrialPlateauStopper` stops the run by its reported losses."""
    stopper = TrialPlateauStopper("loss", **settings)
    return next((step for step, loss in _reports(run) if stopper("run", {"loss": loss})), None)


def asha(runs: Sequence[Recording], spared: Sequence[Recording], **settings: Any) -> Mapping[str, int | None]:
    """By name of the run: the step at which ASHA stops it, if all of them train at the same pace in one sweep."""
    scheduler = AsyncHyperBandScheduler(time_attr="step", metric="loss", mode="min", max_t=10**6, **settings)
    trials = {run.plan.name: SimpleNamespace(trial_id=run.plan.name) for run in runs}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    stops: dict[str, int | None] = dict.fromkeys(trials)
    kept = {run.plan.name for run in spared}
    for reports in zip(*(_reports(run) for run in runs), strict=True):
        for run, (step, loss) in zip(runs, reports, strict=True):
            name = run.plan.name
            if stops[name] is None:
                said = scheduler.on_trial_result(None, trials[name], {"step": step, "loss": loss})  # type: ignore[arg-type]
                if said == TrialScheduler.STOP and name not in kept:
                    stops[name] = step
    return stops


def _reports(run: Recording) -> list[tuple[int, float]]:
    """(step, loss) of each report; NaN and inf as they are."""
    return [(step, loss) for step, loss in run.losses.items() if step % REPORTED == 0]
