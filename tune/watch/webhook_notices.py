"""Posts warnings, collapses, failures and the end of a sweep to a webhook."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ray import tune

from altgrad.commands.web.webhook import Webhook
from altgrad.results import RecordError, list_runs, read_end
from altgrad.storage.folder import Folder
from tune.cluster.ray_trial import run_of, why_failed

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class Notices(tune.Callback):
    """Posts each first warning, collapse and failure, and on exit the number of runs by status.

    On exit also a collapse that only the baseline showed, after the run had ended.

    Must follow `EndRecords`, which writes the end records that it reads.
    """

    def __init__(self, address: str, sweep: Folder) -> None:
        self._webhook = Webhook(address)
        self._sweep = sweep
        self._warned: set[str] = set()
        self._ended: set[str] = set()  # runs that had neither collapsed nor failed when they ended

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks with its own state; the address must not get there

    def __enter__(self) -> Notices:
        return self

    def __exit__(self, *error: object) -> None:
        runs, _ = list_runs(self._sweep)
        for run in runs:
            if run.name in self._ended and run.status == "collapsed" and run.end is not None:
                self._webhook.post("collapsed", sweep=self._sweep.name, run=run.name, verdict=run.end["verdict"])
        self._webhook.post("end", sweep=self._sweep.name, runs=dict(Counter(run.status for run in runs)))
        self._webhook.close()

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        run, warning = run_of(trial), result.get("warning")
        if warning is not None and run not in self._warned:
            self._warned.add(run)
            self._webhook.post("warning", sweep=self._sweep.name, run=run, step=result["step"], sentence=warning)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        run = run_of(trial)
        try:
            end = read_end(self._sweep / run)
        except RecordError:
            return
        if end is None:
            return
        if end["status"] == "collapsed":
            self._webhook.post("collapsed", sweep=self._sweep.name, run=run, verdict=end["verdict"])
        elif end["status"] == "failed":  # its own code raised an exception
            self._webhook.post("failed", sweep=self._sweep.name, run=run, error=end["summary"]["error"])
        else:
            self._ended.add(run)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._webhook.post("failed", sweep=self._sweep.name, run=run_of(trial), error=why_failed(trial))
