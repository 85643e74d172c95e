"""Writes the end records of runs that could not write their own: stopped from outside, or dead without a retry left.

A trial that Tune stops, or whose process is killed, cannot write anything.  The driver knows the reason and writes
`end.json`, unless the run already has one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ray import tune

from altgrad.collapse import store_gap
from altgrad.report import write_failure_report
from altgrad.results import RecordError, Verdict, read_end, write_end
from altgrad.storage.folder import Folder
from altgrad.storage.patience import StorageRefused
from tune.cluster.ray_trial import once_more, plan_of, run_of, why_failed
from tune.plan.sweep_record import write_never_started
from tune.run.stopper import CollapseStopper

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class EndRecords(tune.Callback):
    """Writes the end record of each run that ended without one; must precede the callbacks that read end records.

    `refused`: the error that ended the sweep, if storage accepted no record; else None.
    """

    def __init__(
        self, stopper: CollapseStopper, sweep: Folder, scheduler: str, tell: Callable[[str], None] = print
    ) -> None:
        self.refused: StorageRefused | None = None
        self._stopper = stopper
        self._sweep = sweep.patient()  # an end record is written once
        self._scheduler = scheduler
        self._tell = tell

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks with its own state, which a resumed sweep does not read

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """The trial returned, or the stopper or the scheduler ended it (its worker is still waiting in its report)."""
        run = run_of(trial)
        with self._recording(run):
            folder = self._sweep / run
            self._stopper.ended(run)
            verdict = self._stopper.verdict(run)
            if not folder.has("end.json"):
                reason = f"stopped by --scheduler {self._scheduler}" if verdict is None else verdict.sentence()
                summary = {"reason": reason, "steps": _steps(trial)}
                write_end(folder, "stopped" if verdict is None else "collapsed", verdict, summary)
                if verdict is not None:
                    write_failure_report(folder)
            elif verdict is not None:
                _add_verdict(folder, verdict, plan_of(trial).config.stop_on_collapse)
            self._store_gaps(run)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """The trial died and starts again; after a lack of memory or storage it is retried only once."""
        if once_more(trial):
            trial.max_failures = min(trial.max_failures, trial.run_metadata.num_failures)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """The trial died and has no retry left."""
        run = run_of(trial)
        with self._recording(run):
            self._stopper.ended(run)
            folder = self._sweep / run
            if not folder.has("run.json"):
                write_never_started(folder, plan_of(trial), self._sweep.name)
            if not folder.has("end.json"):  # the runner records an exception itself; a dead process cannot
                write_end(folder, "failed", None, {"error": why_failed(trial), "steps": _steps(trial)})
            self._store_gaps(run)

    def _store_gaps(self, run: str) -> None:
        """Store the gap of every pair of runs that is complete now, and the verdict with it.

        A run that ended before its baseline was judged up to where the baseline was then.  An error here never ends the
        sweep.
        """
        with suppress(OSError, RecordError):
            folder = self._sweep.patient(0)
            for trial in self._stopper.pairs_over(run):
                assert trial.baseline is not None
                own = folder / trial.run
                if store_gap(trial.config, own, folder / trial.baseline) is not None:
                    continue  # the two cannot be compared
                verdict = self._stopper.last_verdict(trial.run)
                if verdict is not None and _add_verdict(own, verdict, trial.config.stop_on_collapse):
                    self._tell(f"{trial.run}: collapsed, as its baseline now shows: {verdict.sentence()}")

    @contextmanager
    def _recording(self, run: str) -> Iterator[None]:
        """Context that reports an error of one run's folder, and raises only if storage accepts no file at all.

        That error is kept in `refused`, because Tune converts an exception of a callback to text.
        """
        try:
            yield
        except StorageRefused as error:
            if not _takes_files(self._sweep.patient(0)):
                self.refused = error
                raise
            self._tell(f"{run}: its end cannot be recorded: {error}")
        except (OSError, RecordError) as error:
            self._tell(f"{run}: its end cannot be recorded: {' '.join(str(error).split())}")


def _takes_files(folder: Folder) -> bool:
    """Whether a folder can be written to at this moment."""
    name = f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.write_bytes(name, b"")
        folder.delete(name)
    except OSError:
        return False
    return True


def _steps(trial: TuneTrial) -> int | None:
    """The last step that the trial reported."""
    return (trial.last_result or {}).get("step")


def _add_verdict(folder: Folder, verdict: Verdict, ends_run: bool) -> bool:
    """Add the driver's verdict to the end record of a run that has none, or one of a later step; whether it was added.

    The driver sees the gap to the baseline besides what the run itself saw.  ends_run: whether the verdict would have
    ended the run at once; one that somebody stopped later then counts as collapsed, as a completed one always does.
    """
    end = read_end(folder)
    if end is None or end["status"] == "failed":
        return False
    known = end["verdict"]
    if known is not None and known["step"] <= verdict.step:
        return False
    stays = end["status"] == "stopped" and not ends_run
    write_end(folder, "stopped" if stays else "collapsed", verdict, end["summary"])
    write_failure_report(folder)
    return True
