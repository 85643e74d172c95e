"""Kills trials that hang, so that they are restarted from their last checkpoint.

A process that hangs in a kernel, a lock or a dead network connection neither reports nor raises, and Tune would wait
without end.  Before its first report a trial imports, reads its text and compiles, which takes longer than the steps
between two reports; it has `START_SECONDS` more for that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from rich.console import Console

from altgrad.text.terminal_output import say
from tune.cluster.ray_trial import run_of

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

START_SECONDS = 600.0  # a cold compile on a busy machine takes minutes


class StallWatch(tune.Callback):
    """Kills the worker of a trial without a report for `seconds`, or before the first one `START_SECONDS` more."""

    def __init__(self, seconds: float, console: Console) -> None:
        self._seconds = seconds
        self._console = console
        self._since: dict[str, float] = {}  # run -> monotonic time of its start or last report
        self._reported: set[str] = set()  # runs past their first report of this attempt

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks with its own state, which a resumed sweep does not read

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Check all trials; Tune's loop calls this several times a second, also without reports."""
        now = time.monotonic()
        for trial in trials:
            run, actor = run_of(trial), trial.temporary_state.ray_actor
            if trial.status != "RUNNING" or actor is None:
                self._forget(run)
                continue
            limit = self._seconds if run in self._reported else START_SECONDS + self._seconds
            if now - self._since.setdefault(run, now) > limit:
                self._forget(run)
                say(self._console, f"{run}  no report for {limit:g} s: its process is killed")
                ray.kill(actor)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self._since[run_of(trial)] = time.monotonic()
        self._reported.add(run_of(trial))

    def _forget(self, run: str) -> None:
        self._since.pop(run, None)
        self._reported.discard(run)
