"""Stops trials that have collapsed relative to their baseline, which only the driver can see.

Each trial's runner judges its own records at every step and ends by itself.  The stopper gets the same records in the
driver, and adds the gap to the baseline run of the same seed, which may be training at the same time.  It keeps
records by step, so that a record that is reported twice (by a restarted trial) has no effect.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from altgrad.collapse import CollapseDetector, gap_to_baseline
from altgrad.results import RecordError, Verdict, ended_as, read_start
from altgrad.results.reading.ancestors import losses_by_step, records_until
from altgrad.storage.folder import Folder
from tune.plan.trial import Trial

StepRecord = Mapping[str, float]


class CollapseStopper(tune.Stopper):
    """Judges every trial by its records and its baseline; Tune calls it at every report.

    `interrupted`: the signal that asked the whole sweep to stop; None if there was none.
    """

    def __init__(self, trials: Sequence[Trial], sweep: Folder) -> None:
        self.interrupted: signal.Signals | None = None
        self._trials = {trial.run: trial for trial in trials}
        self._sweep = sweep
        self._curves: dict[str, dict[int, float]] = {trial.run: {} for trial in trials if trial.baseline is None}
        self._over = {run for run in self._curves if ended_as(sweep / run) is not None}
        for run in self._curves:
            origin = self._trials[run].config.branch_from
            if run in self._over:
                self._curves[run] |= losses_by_step(sweep / run)
            elif origin is not None:
                before = losses_by_step(Folder.at(origin["run"])).items()
                self._curves[run] |= {step: loss for step, loss in before if step <= origin["step"]}
        self._watches: dict[str, _Watch] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Judge the records of a report; return whether a verdict must end the trial, which has not ended by itself.

        The records are removed from the report, because Tune would store them with its state.  The smoothed gap to the
        baseline and the verdict's sentence are added, for later readers of the report.
        """
        records = result.pop("rows", None)
        if records is None:  # Tune repeats the last report when a trial returns
            return False
        try:
            watch = self._watch(result["run"], records)
        except (OSError, RecordError):  # storage cannot be read now; at the next report these records are read from it
            return False
        watch.take(records, self._over)
        if result["status"] != "running":
            self.ended(result["run"])
        if watch.gap is not None:
            result["gap_to_baseline"] = watch.gap
        verdict = watch.detector.verdict
        if verdict is None:
            return False
        result["reason"] = verdict.sentence()
        return result["status"] == "running" and watch.trial.config.stop_on_collapse

    def interrupt(self, number: signal.Signals) -> None:
        """Ask the whole sweep to stop."""
        self.interrupted = number

    def stop_all(self) -> bool:
        """Whether the sweep was interrupted."""
        return self.interrupted is not None

    def verdict(self, run: str) -> Verdict | None:
        """The verdict on a run; None if there is none."""
        watch = self._watches.get(run)
        return None if watch is None else watch.detector.verdict

    def last_verdict(self, run: str) -> Verdict | None:
        """The verdict on a run of `pairs_over`: records of it that waited for the baseline are judged now.

        A run that ended in an earlier process is judged by its records on disk.  Raises OSError or RecordError if they
        cannot be read.
        """
        watch = self._watch(run)
        watch.take((), self._over)
        return watch.detector.verdict

    def ended(self, run: str) -> None:
        """Note that a run sends no more records, so that runs compared with it need not wait for them."""
        if run in self._curves:
            self._over.add(run)

    def pairs_over(self, run: str) -> list[Trial]:
        """The trials whose own curve and whose baseline's curve are complete, now that `run` has ended."""
        over = {name for name in self._trials if name == run or (self._sweep / name).has("end.json")}
        pairs = [trial for trial in self._trials.values() if run in (trial.run, trial.baseline)]
        return [trial for trial in pairs if trial.baseline in over and trial.run in over]

    def _watch(self, run: str, records: Sequence[StepRecord] = ()) -> _Watch:
        """The run's watch; a new one first gets the records on disk from before those that were just reported."""
        if run not in self._watches:
            trial = self._trials[run]
            folder = self._sweep / run
            watch = _Watch(trial, read_start(folder), self._curves)
            before = min((int(record["step"]) for record in records), default=None)
            watch.take(records_until(folder, None if before is None else before - 1), self._over)
            self._watches[run] = watch
        return self._watches[run]


class _Watch:
    """One trial in the driver, with a detector that gets a record once its gap to the baseline is known."""

    def __init__(self, trial: Trial, start: Mapping[str, Any], curves: dict[str, dict[int, float]]) -> None:
        self.trial = trial
        vocabulary = start.get("vocabulary")
        self.detector = CollapseDetector(trial.config, vocabulary, start.get("unigram_entropy"))
        self.gap: float | None = None  # the newest one of a step of this run: before a branch it is the parent's
        self._begin = 0 if trial.config.branch_from is None else int(trial.config.branch_from["step"])
        self._own = curves.get(trial.run)
        self._baseline = None if trial.baseline is None else curves[trial.baseline]
        self._gaps = None if self._baseline is None else gap_to_baseline(trial.config, vocabulary, self._baseline)
        self._waiting: deque[StepRecord] = deque()
        self._last = -1

    def take(self, records: Sequence[StepRecord], over: set[str]) -> None:
        """Judge new records; a record waits until the baseline has a loss at its step, or has ended."""
        for record in records:
            if record["step"] > self._last:
                self._last = int(record["step"])
                self._waiting.append(record)
                if self._own is not None:
                    self._own[self._last] = record["loss"]
        while self._waiting and self._can_judge(int(self._waiting[0]["step"]), over):
            self._judge(self._waiting.popleft())

    def _can_judge(self, step: int, over: set[str]) -> bool:
        return self._baseline is None or step in self._baseline or self.trial.baseline in over

    def _judge(self, record: StepRecord) -> None:
        if self._gaps is not None:
            gap = self._gaps.update(int(record["step"]), record["loss"])
            if gap is not None:
                self.gap = gap if record["step"] > self._begin else None
                record = {**record, "gap_to_baseline": gap}
        self.detector.update(record)
