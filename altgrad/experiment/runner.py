"""Runs one config into a results folder: training, collapse detection, checkpoints and the failure report.

The runner makes its own Trainer and needs only a folder.  If it is started again on the folder of an interrupted run,
it continues from the newest intact checkpoint, as a further attempt.

In a process group (see `kernel.ranks`) every rank runs this with the same arguments.  Only the first rank reads and
writes the folder and reports; it sends what it reads (checkpoint, stop request, baseline) to the others, so that all
make the same decisions.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from altgrad.collapse import BaselineGap, CollapseDetector, gap_to_baseline
from altgrad.config.memory import bytes_per_parameter
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.attempts import AnotherRunError, another_start, earlier_attempts, next_attempt
from altgrad.experiment.checkpoint import CheckpointError, check_content, load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import ExperimentResult, LossSummary, Report
from altgrad.experiment.process_load import ProcessUsage
from altgrad.experiment.provenance import coverage, provenance
from altgrad.quantization.kernel.ranks import Ranks, lost_another_rank
from altgrad.report import write_failure_report
from altgrad.results import Lease, LeaseHeld, NoWriter, RunWriter, Status, Verdict
from altgrad.results.common_start import other_beginning
from altgrad.results.stop_request import stop_request, stop_sentence
from altgrad.storage.folder import Folder
from altgrad.storage.patience import Outage
from altgrad.text.error_hints import cut
from altgrad.training.compile.policy import How
from altgrad.training.data import Batches
from altgrad.training.process_settings import threads
from altgrad.training.starting_point import check_device
from altgrad.training.trainer import StepOutcome, Trainer


class FormatExperimentRunner:
    """Runs one config and writes its results folder.

    report: called every `report_interval` steps and at the end, after the rows of those steps were given to the writer.
    baseline: training loss by step of the baseline run, if its curve is known beforehand.
    baseline_start: the baseline's `run.json`; if it began with other weights or data, there is no gap to it, and the
    `run.json` of this run names the difference.
    announce: called once before the first step, with a sentence about the rounded share of the model.
    resources: CPUs and GPUs reserved for the run, for run.json.  group: see `Lease`.
    model, batches, runs_alike: see `Trainer`.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Folder,
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
    ) -> None:
        self.config = config
        self.folder = folder
        self.run_name = run or folder.name
        self._sweep, self._intervention = sweep, intervention
        self._report, self._report_interval = report, report_interval
        self._ranks = Ranks.joined()
        self._baseline = baseline
        self._baseline_start = baseline_start or {}
        self._gap: BaselineGap | None = None
        self._model, self._batches, self._runs_alike = model, batches, runs_alike
        self._resources, self._announce = resources, announce
        self._group = group
        self._lease: Lease | None = None
        self._checkpoints = folder / "checkpoints"
        self._outage = Outage(self._checkpoints)
        self._rows: list[Mapping[str, float]] = []
        self._losses = LossSummary()
        self._stop: Mapping[str, Any] | None = None
        self._compiled_before: How | None = None

    def run(self) -> ExperimentResult:
        """Train to the end, to a collapse, or to an exception, which is recorded (status `failed`) and raised.

        Raises LeaseHeld, and records nothing, if another process trains in the folder.
        """
        if self._ranks.first:
            self._lease = Lease.take(self.folder, self._group, wait=self._group is not None)
        try:
            with threads(self.config.threads):
                return self._train()
        finally:
            if self._lease is not None:
                self._lease.release()

    def _train(self) -> ExperimentResult:
        attempt, self._compiled_before = self._ranks.from_first(lambda: next_attempt(self.folder, self.config))
        self._earlier = self._ranks.from_first(lambda: earlier_attempts(self.folder) if attempt else [])
        baseline = self._ranks.from_first(lambda: self._baseline)
        owner = "" if self._lease is None else self._lease.owner
        writer = (RunWriter if self._ranks.first else NoWriter)(self.folder, attempt, owner=owner)
        try:
            check_device(self._resources or {}, self.config.device)
            trainer = Trainer(self.config, self._model, self._batches, self._runs_alike, self._compiled_before)
            vocabulary = trainer.batches.vocabulary
            detector = CollapseDetector(self.config, vocabulary)
            info = self._info(trainer)
            difference = self._ranks.from_first(lambda: other_beginning(self._baseline_start, info))
            if difference is not None:
                info["no_gap"] = f"the baseline began with {difference}"
            elif baseline is not None:
                self._gap = gap_to_baseline(self.config, vocabulary, baseline)
            other = self._ranks.from_first(lambda: another_start(self.folder, info) if attempt else None)
            if other is not None:
                raise AnotherRunError(other)
            writer.start(info)
            self._resume(trainer, detector, writer)
            self._stop = self._stop_request()
            self._usage = ProcessUsage(trainer.device)
            while not self._over(trainer, detector):
                self._one_step(trainer, detector, writer)
            return self._finish(trainer, detector, writer)
        except (AnotherRunError, LeaseHeld):
            raise  # nothing is recorded: the folder belongs to another run or process
        except Exception as error:  # recorded for the reader of the folder, then raised for the caller
            if not self._ranks.alone and lost_another_rank(error):
                raise  # not recorded: the run itself has not failed, and the launcher knows why the rank is gone
            reason = " ".join(str(error).split()) or type(error).__name__
            summary = {"error": f"{type(error).__name__}: {reason}", "traceback": traceback.format_exc()}
            self._record_failure(writer, summary)
            raise

    def _record_failure(self, writer: RunWriter, summary: Mapping[str, Any]) -> None:
        """Write the end record of a failed run without waiting, because storage may be the cause of the failure."""
        with suppress(OSError):
            if self.folder.patient(0).has("run.json"):
                writer.end("failed", None, summary, patience=0)

    def _resume(self, trainer: Trainer, detector: CollapseDetector, writer: RunWriter) -> None:
        state, corrupt = self._ranks.from_first(lambda: load_checkpoint(self._checkpoints))
        if state is not None:
            self._take_over(state, trainer, detector)
        for name in corrupt:
            writer.event(
                trainer.step_number, "checkpoint_fallback", corrupt=name, resumed_from_step=trainer.step_number
            )
        if writer.attempt:
            writer.event(trainer.step_number, "restore", from_step=trainer.step_number, attempt=writer.attempt)

    def _take_over(self, state: dict[str, Any], trainer: Trainer, detector: CollapseDetector) -> None:
        """Be where a checkpoint was taken.  Raises CheckpointError for one that is not this version's or model's."""
        try:
            check_content(state, self._state(trainer, detector))
            trainer.load_state_dict(state["trainer"])
            detector.load_state_dict(state["detector"])
            self._losses.load_state_dict(state["losses"])
            if self._gap is not None and state["gap"] is not None:
                self._gap.load_state_dict(state["gap"])
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split()) if isinstance(error, ValueError) else repr(error)
            raise CheckpointError(
                f"{self._checkpoints}: {cut(reason, 200)}; the checkpoint is another version's or model's: go on with "
                "that version, or remove the run's folder"
            ) from error

    def _state(self, trainer: Trainer, detector: CollapseDetector) -> dict[str, Any]:
        return {
            "trainer": trainer.state_dict(),
            "detector": detector.state_dict(),
            "losses": self._losses.state_dict(),
            "gap": self._gap.state_dict() if self._gap is not None else None,
        }

    def _one_step(self, trainer: Trainer, detector: CollapseDetector, writer: RunWriter) -> None:
        outcome = trainer.step()
        record, step = outcome.record, trainer.step_number
        if self._gap is not None:
            gap = self._gap.update(step, record["loss"])
            if gap is not None:
                record["gap_to_baseline"] = gap
        if step % self._report_interval == 0:
            record.update(self._usage.sample())
        self._losses.add(record)
        known = detector.verdict
        verdict = detector.update(record)
        self._write(outcome, writer)
        if verdict is not None and known is None:
            writer.event(step, "verdict", rule=verdict.rule, sentence=verdict.sentence())
        last = self._over(trainer, detector)
        if step % self.config.checkpoint_interval == 0 or last:
            self._checkpoint(trainer, detector, writer)
        self._rows.append(record)
        if self._lease is not None and step % self._report_interval == 0:
            self._lease.check()
        if not last and step % self._report_interval == 0:
            if self._report is not None:
                writer.flush()  # the caller may end this process in its report
                self._send(step, "running", detector.verdict)
            self._stop = self._stop_request()

    def _write(self, outcome: StepOutcome, writer: RunWriter) -> None:
        writer.step(outcome.record)
        writer.layers(outcome.layers)
        writer.tensors(outcome.tensors)
        for event in outcome.events:
            writer.event(event.step, event.kind, **event.detail)

    def _checkpoint(self, trainer: Trainer, detector: CollapseDetector, writer: RunWriter) -> None:
        """Write a checkpoint, after flushing: a restored run does not write rows before its checkpoint again.

        If storage refuses the write, this checkpoint is skipped; if it keeps refusing, the run fails.
        """
        state = self._state(trainer, detector)
        if not (self._ranks.first and writer.flush(durable=True)):
            return
        try:
            save_checkpoint(self._checkpoints.patient(0), trainer.step_number, state)
        except OSError as error:
            self._outage.refused(error)
            writer.event(trainer.step_number, "checkpoint_skipped", reason=" ".join(str(error).split()))
        else:
            self._outage.over()

    def _finish(self, trainer: Trainer, detector: CollapseDetector, writer: RunWriter) -> ExperimentResult:
        if self._ranks.first and not self.folder.patient().has("run.json"):
            raise FileNotFoundError(
                f"{self.folder}: its run.json is gone; the folder was removed while the run trained"
            )
        verdict = detector.verdict
        cut_short = trainer.step_number < self.config.max_steps and not self._collapsed(detector)
        status: Status = "stopped" if cut_short else "completed" if verdict is None else "collapsed"
        result = ExperimentResult(
            self.run_name,
            self.folder,
            status,
            verdict,
            trainer.step_number,
            self._losses.final,
            self._losses.best,
            self._losses.validation,
            trainer.elapsed_seconds,
        )
        summary: dict[str, Any] = {
            "steps": result.steps,
            "final_loss": result.final_loss,
            "best_loss": result.best_loss,
            "final_validation_loss": result.final_validation_loss,
            "seconds": result.seconds,
            "formats": {name: layer.format_names() for name, layer in trainer.layers.items()},
        }
        if cut_short and self._stop is not None:
            summary["reason"] = stop_sentence(self._stop)
        writer.end(status, verdict, summary)
        if verdict is not None and self._ranks.first:
            write_failure_report(self.folder.patient())
        if self._report is not None:
            self._send(result.steps, status, verdict)
        return result

    def _send(self, step: int, status: Status, verdict: Verdict | None) -> None:
        rows, self._rows = self._rows, []
        assert self._report is not None
        if self._ranks.first:
            self._report(Report(step, self.config.max_steps, rows, status, verdict))

    def _over(self, trainer: Trainer, detector: CollapseDetector) -> bool:
        return trainer.step_number >= self.config.max_steps or self._collapsed(detector) or self._stop is not None

    def _stop_request(self) -> Mapping[str, Any] | None:
        """A request to stop this run or its sweep, which all ranks get at the same step; None if there is none."""
        return self._ranks.from_first(self._find_stop_request)

    def _find_stop_request(self) -> Mapping[str, Any] | None:
        """The stop request in the run's or the sweep's folder; None also if storage cannot be read at the moment."""
        folder = self.folder.patient(0)
        try:
            return stop_request(folder, None if self._sweep is None else folder.parent)
        except OSError:
            return None

    def _collapsed(self, detector: CollapseDetector) -> bool:
        return self.config.stop_on_collapse and detector.verdict is not None

    def _info(self, trainer: Trainer) -> dict[str, Any]:
        """The contents of run.json, which is written before the first step."""
        covered = coverage(trainer)
        if covered is not None and self._announce is not None and self._ranks.first:
            self._announce(covered.sentence())
        return {
            "run": self.run_name,
            "sweep": self._sweep,
            "intervention": self._intervention,
            "config": self.config.model_dump(mode="json"),
            "resources": self._resources,
            "earlier": self._earlier,
            "coverage": None if covered is None else covered.record(),
            "bytes_per_parameter": bytes_per_parameter(self.config),
            **provenance(trainer),
        }


def run_format_experiment(
    config: TrainConfig,
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
) -> ExperimentResult:
    """Run one config into a folder (local path or URI); what each parameter means, `FormatExperimentRunner` says."""
    return FormatExperimentRunner(
        config,
        folder if isinstance(folder, Folder) else Folder.at(folder),
        run=run,
        sweep=sweep,
        intervention=intervention,
        report=report,
        report_interval=report_interval,
        baseline=baseline,
        baseline_start=baseline_start,
        model=model,
        batches=batches,
        runs_alike=runs_alike,
        resources=resources,
        announce=announce,
        group=group,
    ).run()
