"""Runs one config into a results folder: training, collapse detection, checkpoints and the failure report.

The runner makes its own Trainer and needs only a folder.  If it is started again on the folder of an interrupted run,
it continues from the newest intact checkpoint, as a further attempt.

In a process group (see `kernel.ranks`) every rank runs this with the same arguments.  Only the first rank reads and
writes the folder and reports; it sends what it reads (checkpoint, stop request, baseline) to the others, so that all
make the same decisions.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec

from torch import nn

from altgrad.branch import Branch, with_parent
from altgrad.branch.checkpoints import settled
from altgrad.collapse import CollapseDetector, CollapseForecast
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.experiment.attempts import (
    AnotherRunError,
    another_start,
    earlier_attempts,
    next_attempt,
    parent_compiled,
)
from altgrad.experiment.checkpoints.checkpointing import Checkpointing, RunInTraining
from altgrad.experiment.checkpoints.stored_weights import stored_start
from altgrad.experiment.outcome import ExperimentResult, Report
from altgrad.experiment.process_load import ProcessUsage
from altgrad.experiment.run_start import RunSettings, start_record
from altgrad.quantization.kernel.ranks import Ranks, lost_another_rank
from altgrad.report import write_failure_report
from altgrad.results import Lease, LeaseHeld, NoWriter, RunWriter, Status
from altgrad.results.stop_request import stop_request, stop_sentence
from altgrad.storage.folder import Folder
from altgrad.text.error_hints import kind
from altgrad.training.data import Batches, unigram_entropy_of
from altgrad.training.process_settings import threads
from altgrad.training.starting_point import check_device
from altgrad.training.trainer import StepOutcome, Trainer


class FormatExperimentRunner:
    """Runs one config and writes its results folder (a local path or a URI).

    run: name of the run; None: that of the folder.  sweep: name of the sweep to which the run belongs; a request to
    stop in the folder above counts for it, too.  intervention: name under which tables list the config's rescue fields.
    report: called every `report_interval` steps and at the end, after the rows of those steps were given to the writer.
    baseline: training loss by step of the baseline run, if its curve is known beforehand.
    baseline_start: the baseline's `run.json`; if it began with other weights or data, there is no gap to it, and the
    `run.json` of this run names the difference.
    announce: called once before the first step, with a sentence about the rounded share of the model.
    resources: CPUs and GPUs reserved for the run, for run.json.  group: see `Lease`.
    model, batches, runs_alike: see `Trainer`.
    branch: the run starts from another one's checkpoint; `config` is then None, see `Branch`.
    until: the last step to train, if that is before the config's; the run then ends as stopped.
    """

    def __init__(
        self,
        config: TrainConfig | None,
        folder: str | Path | Folder,
        *,
        run: str | None = None,
        sweep: str | None = None,
        intervention: str = "none",
        report: Callable[[Report], None] | None = None,
        report_interval: int = 10,
        baseline: Mapping[int, float] | None = None,
        baseline_start: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        batches: Batches | None = None,
        runs_alike: int | None = None,
        resources: Mapping[str, float] | None = None,
        announce: Callable[[str], None] | None = None,
        group: str | None = None,
        branch: Branch | None = None,
        until: int | None = None,
    ) -> None:
        if not isinstance(config, TrainConfig | None):
            raise TypeError(f"config: expected a TrainConfig, found {kind(config)}; give TrainConfig(**fields)")
        if (config is None) == (branch is None):
            raise ConfigError("give either a config or a branch, whose config is its parent's with its changes")
        config = with_parent(config) if config is not None else branch.config()  # type: ignore[union-attr]
        self.config = config.altered(start_from=settled(config.start_from))
        self._until = until
        self.folder = folder if isinstance(folder, Folder) else Folder.at(folder)
        self._settings = RunSettings(
            run=run or self.folder.name,
            sweep=sweep,
            intervention=intervention,
            report=report,
            report_interval=report_interval,
            baseline=baseline,
            baseline_start=baseline_start or {},
            resources=resources,
            announce=announce,
            group=group,
        )
        self._model, self._batches, self._runs_alike = model, batches, runs_alike
        self._ranks = Ranks.joined()
        self._lease: Lease | None = None
        self._rows: list[Mapping[str, float]] = []
        self._stop: Mapping[str, Any] | None = None
        self._trained = 0  # the last step whose rows were given to the writer

    def run(self) -> ExperimentResult:
        """Train to the end, to a collapse, or to an exception, which is recorded (status `failed`) and raised.

        Raises LeaseHeld, and records nothing, if another process trains in the folder.
        """
        if self._ranks.first:
            group = self._settings.group
            self._lease = Lease.take(self.folder, group, wait=group is not None)
        try:
            with threads(self.config.threads):
                return self._train()
        finally:
            if self._lease is not None:
                self._lease.release()

    def _train(self) -> ExperimentResult:
        attempt, compiled_before = self._ranks.from_first(lambda: next_attempt(self.folder, self.config))
        earlier = self._ranks.from_first(lambda: earlier_attempts(self.folder) if attempt else [])
        owner = "" if self._lease is None else self._lease.owner
        writer = (RunWriter if self._ranks.first else NoWriter)(self.folder, attempt, owner=owner)
        try:
            check_device(self._settings.resources or {}, self.config.device)
            if not attempt:
                compiled_before = self._ranks.from_first(lambda: parent_compiled(self.config))
            start = stored_start(self.config)
            trainer = Trainer(self.config, self._model, self._batches, self._runs_alike, compiled_before, start)
            info, gap = start_record(self._settings, trainer, earlier)
            other = self._ranks.from_first(lambda: another_start(self.folder, info) if attempt else None)
            if other is not None:
                raise AnotherRunError(other)
            writer.start(info)
            detector = CollapseDetector(self.config, trainer.batches.vocabulary, unigram_entropy_of(trainer.batches))
            run = RunInTraining(trainer, detector, gap, CollapseForecast(self.config))
            checkpoints = Checkpointing(self.folder / "checkpoints", run, writer)
            checkpoints.resume()
            self._trained = run.step
            self._stop = self._stop_request()
            usage = ProcessUsage(trainer.device)
            while not self._over(run):
                self._one_step(run, writer, usage)
                last = self._over(run)
                if run.step % self.config.checkpoint_interval == 0 or last:
                    checkpoints.save()
                self._keep_in_touch(run, writer, last)
            if run.detector.verdict is None and run.step >= self.config.max_steps:
                checkpoints.over()
            return self._finish(run, writer)
        except (AnotherRunError, LeaseHeld):
            raise  # nothing is recorded: the folder belongs to another run or process
        except Exception as error:  # recorded for the reader of the folder, then raised for the caller
            if not self._ranks.alone and lost_another_rank(error):
                raise  # not recorded: the run itself has not failed, and the launcher knows why the rank is gone
            reason = " ".join(str(error).split()) or type(error).__name__
            said = {"error": f"{type(error).__name__}: {reason}", "traceback": traceback.format_exc()}
            self._record_failure(writer, {**said, "steps": self._trained})
            raise

    def _record_failure(self, writer: RunWriter, summary: Mapping[str, Any]) -> None:
        """Write the end record of a failed run without waiting, because storage may be the cause of the failure."""
        with suppress(OSError):
            if self.folder.patient(0).has("run.json"):
                writer.end("failed", None, summary, patience=0)

    def _one_step(self, run: RunInTraining, writer: RunWriter, usage: ProcessUsage) -> None:
        """Train a step, judge it, and give its rows and events to the writer."""
        outcome = run.trainer.step()
        record, step = outcome.record, run.step
        if run.gap is not None:
            gap = run.gap.update(step, record["loss"])
            if gap is not None:
                record["gap_to_baseline"] = gap
        if step % self._settings.report_interval == 0:
            record.update(usage.sample())
        run.losses.add(record)
        known = run.detector.verdict
        verdict = run.detector.update(record)
        self._write(outcome, writer)
        self._trained = step
        if verdict is not None and known is None:
            writer.event(step, "verdict", rule=verdict.rule, sentence=verdict.sentence())
        warned = run.forecast.update(record)
        if warned is not None:
            writer.event(step, "collapse_warning", sentence=warned.sentence())
        self._rows.append({**record, **outcome.own})

    def _write(self, outcome: StepOutcome, writer: RunWriter) -> None:
        writer.step(outcome.record)
        writer.own(int(outcome.record["step"]), outcome.own)
        writer.layers(outcome.layers)
        writer.tensors(outcome.tensors)
        for event in outcome.events:
            writer.event(event.step, event.kind, **event.detail)

    def _keep_in_touch(self, run: RunInTraining, writer: RunWriter, last: bool) -> None:
        """Every `report_interval` steps: check that the folder is still ours, report, and look for a stop request."""
        if run.step % self._settings.report_interval:
            return
        if self._lease is not None:
            self._lease.check()
        if last:  # `_finish` reports
            return
        if self._settings.report is not None:
            writer.flush()  # the caller may end this process in its report
            self._send(self._settings.report, run, "running")
        self._stop = self._stop_request()

    def _finish(self, run: RunInTraining, writer: RunWriter) -> ExperimentResult:
        if self._ranks.first and not self.folder.patient().has("run.json"):
            raise FileNotFoundError(
                f"{self.folder}: its run.json is gone; the folder was removed while the run trained"
            )
        verdict = run.detector.verdict
        cut_short = run.step < self.config.max_steps and not self._collapsed(run)
        status: Status = "stopped" if cut_short else "completed" if verdict is None else "collapsed"
        result = ExperimentResult(
            self._settings.run,
            self.folder,
            status,
            verdict,
            run.step,
            run.losses.final,
            run.losses.best,
            run.losses.validation,
            run.trainer.elapsed_seconds,
            run.trainer.loss_unit,
        )
        summary = result.summary()
        summary["formats"] = {name: layer.format_names() for name, layer in run.trainer.layers.items()}
        if cut_short:
            asked = f"asked to train until step {self._until}"
            summary["reason"] = asked if self._stop is None else stop_sentence(self._stop)
        writer.end(status, verdict, summary)
        if verdict is not None and self._ranks.first:
            write_failure_report(self.folder.patient())
        if self._settings.report is not None:
            self._send(self._settings.report, run, status)
        return result

    def _send(self, report: Callable[[Report], None], run: RunInTraining, status: Status) -> None:
        rows, self._rows = self._rows, []
        if self._ranks.first:
            warned = run.forecast.warned
            warning = None if warned is None else warned.sentence()
            unit = run.trainer.loss_unit
            report(Report(run.step, self.config.max_steps, rows, status, run.detector.verdict, warning, unit))

    def _over(self, run: RunInTraining) -> bool:
        last = self.config.max_steps if self._until is None else min(self._until, self.config.max_steps)
        return run.step >= last or self._collapsed(run) or self._stop is not None

    def _collapsed(self, run: RunInTraining) -> bool:
        return self.config.stop_on_collapse and run.detector.verdict is not None

    def _stop_request(self) -> Mapping[str, Any] | None:
        """A request to stop this run or its sweep, which all ranks get at the same step; None if there is none."""
        return self._ranks.from_first(self._find_stop_request)

    def _find_stop_request(self) -> Mapping[str, Any] | None:
        """The stop request in the run's or the sweep's folder; None also if storage cannot be read at the moment."""
        folder = self.folder.patient(0)
        try:
            return stop_request(folder, None if self._settings.sweep is None else folder.parent)
        except OSError:
            return None


_Parameters = ParamSpec("_Parameters")


def _with_parameters_of(
    made: Callable[_Parameters, object],
) -> Callable[[Callable[..., ExperimentResult]], Callable[_Parameters, ExperimentResult]]:
    """A decorator that gives a function the parameters of `made`, for type checkers and `help`."""

    def decorated(function: Callable[..., ExperimentResult]) -> Callable[_Parameters, ExperimentResult]:
        function.__signature__ = inspect.signature(made).replace(return_annotation=ExperimentResult)  # type: ignore[attr-defined]
        return function

    return decorated


@_with_parameters_of(FormatExperimentRunner)
def run_format_experiment(*config_and_folder: Any, **settings: Any) -> ExperimentResult:
    """Run one config into a folder to its end; what each parameter means, `FormatExperimentRunner` says.

    Returns status, verdict and last losses.  What the training raises is recorded in the folder, and raised.
    """
    return FormatExperimentRunner(*config_and_folder, **settings).run()
