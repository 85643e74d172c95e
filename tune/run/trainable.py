"""The function that Ray runs for a trial: it calls the experiment runner, in this process or on several workers.

The run folder is the only state.  A trial that is started again, after its process died or by a resumed sweep, finds
its checkpoints there; Ray gets none.
"""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from typing import Any

import torch
from ray import tune

from altgrad.experiment.allocator import keep_freed_memory
from altgrad.experiment.outcome import Report
from altgrad.experiment.runner import FormatExperimentRunner
from altgrad.metrics import METRICS
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.results import ended_as, read_start, write_end
from altgrad.results.reading.ancestors import losses_by_step
from altgrad.results.stop_request import stop_request, stop_sentence
from altgrad.storage.folder import Folder
from tune.cluster.ray_trial import described, may_pass
from tune.plan.options import WandbMode
from tune.plan.sweep_record import is_finished, write_never_started
from tune.plan.trial import Trial
from tune.run.workers import Reporter, train_on_workers
from tune.watch.wandb_copy import Tracker

# Steps between two reports: a report costs the driver about 6 ms, and a stop takes effect at a report.
REPORT_INTERVAL = 10


@dataclass(frozen=True)
class Job:
    """The parameters of a trial's process: the planned run, the sweep's location, the resources and the W&B mode.

    cpus, gpus, threads: of each worker.
    """

    trial: Trial
    results: str
    sweep: str
    threads: int
    wandb: WandbMode
    runs_alike: int  # runs in this trial's process that share compiled graphs
    workers: int
    cpus: float
    gpus: float
    owner: str | None  # the sweep's owner id, by which a restarted trial takes over its earlier process's lease

    def to_parameters(self) -> dict[str, Any]:
        """Plain values for Tune."""
        return {"trial": self.trial.to_json(), **{name: v for name, v in asdict(self).items() if name != "trial"}}

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> Job:
        """The job of `to_parameters`."""
        return cls(**(parameters | {"trial": Trial.from_json(parameters["trial"], "trial")}))


def train_trial(parameters: dict[str, Any]) -> None:
    """Train one trial (`parameters["job"]`, see `Job`) to its end, reporting to Tune on the way."""
    job = Job.from_parameters(parameters["job"])
    trial = job.trial
    sweep = (Folder.at(job.results) / job.sweep).patient()
    if is_finished(sweep / trial.run):  # its process died between the end record and the last report
        return
    request = stop_request(sweep / trial.run, sweep)
    if request is not None:
        if not (sweep / trial.run).has("run.json"):
            write_never_started(sweep / trial.run, trial, job.sweep)
        write_end(sweep / trial.run, "stopped", None, {"reason": stop_sentence(request)})
        return
    try:
        if job.workers == 1:
            _train(parameters["job"], tune.report)
        else:
            train_on_workers(_train, parameters["job"], job.workers, job.cpus, job.gpus)
    except Exception as error:
        if may_pass(error):
            raise  # Tune starts the trial again in a new process
        _record_failure(trial, sweep, error)


def _record_failure(trial: Trial, sweep: Folder, error: Exception) -> None:
    """Record a failure and return, instead of raising: Tune would retry after any exception."""
    folder = sweep / trial.run
    if not folder.has("run.json"):
        write_never_started(folder, trial, sweep.name)
    if not folder.has("end.json"):  # the runner records what it raises itself
        write_end(folder, "failed", None, {"error": described(error), "traceback": traceback.format_exc()})


def _train(parameters: dict[str, Any], send: Reporter) -> None:
    """Train the trial in this process, or as one rank of it; only the first rank calls `send`."""
    job = Job.from_parameters(parameters)
    trial, first = job.trial, Ranks.joined().first
    sweep = (Folder.at(job.results) / job.sweep).patient()
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    tracker = Tracker(trial, job.sweep, sweep / trial.run, job.wandb if first else "disabled")

    def report(news: Report) -> None:
        tracker.log(news.rows)
        if news.status != "running":  # after the last report Tune may end this process at once
            tracker.finish()
        lost = {} if tracker.lost is None else {"note": tracker.lost}
        send(_result(trial, news) | lost)

    try:
        FormatExperimentRunner(
            trial.config,
            sweep / trial.run,
            run=trial.run,
            sweep=job.sweep,
            intervention=trial.intervention,
            report=report,
            report_interval=REPORT_INTERVAL,
            runs_alike=job.runs_alike,
            resources={"cpus": job.workers * job.cpus, "gpus": job.workers * job.gpus},
            group=job.owner,
            **(_finished_baseline(trial, sweep) if first else {}),
        ).run()
    finally:
        tracker.finish()


def _result(trial: Trial, news: Report) -> dict[str, Any]:
    """A report in the form of a Tune result: the records, for the stopper, and the newest value of each metric.

    Metrics of the task are in the records alone: under a name such as `done` Tune would take one for its own.
    """
    newest = {name: value for row in news.rows for name, value in row.items() if name in METRICS}
    reason = {} if news.verdict is None else {"reason": news.verdict.sentence()}
    warning = {} if news.warning is None else {"warning": news.warning}
    return {
        **newest,
        **reason,
        **warning,
        "run": trial.run,
        "step": news.step,
        "max_steps": news.max_steps,
        "status": news.status,
        "loss_unit": news.loss_unit,
        "rows": news.rows,
    }


def _finished_baseline(trial: Trial, sweep: Folder) -> dict[str, Any]:
    """The runner's arguments about a baseline that has ended; empty if it still trains, for the stopper judges then."""
    if trial.baseline is None or ended_as(sweep / trial.baseline) is None:
        return {}
    baseline = sweep / trial.baseline
    return {"baseline": losses_by_step(baseline), "baseline_start": read_start(baseline)}
