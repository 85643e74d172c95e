"""Kills trials that hang.  A process that is stuck in a kernel, a lock or a dead network reports nothing and raises
nothing; Tune would wait for ever.  A killed one is restarted from its last checkpoint like any that died."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from rich.console import Console

from tune.ending import run_of

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class StallWatch(tune.Callback):
    """Kills the worker of a trial that has reported nothing for `seconds`, counted from its start or last report."""

    def __init__(self, seconds: float, console: Console) -> None:
        self._seconds = seconds
        self._console = console
        self._heard: dict[str, float] = {}  # run -> monotonic time

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks with its own state, which a resumed sweep does not read

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Tune's loop comes by here several times a second, whether or not anything was reported."""
        now = time.monotonic()
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if trial.status != "RUNNING" or actor is None:
                self._heard.pop(run_of(trial), None)
            elif now - self._heard.setdefault(run_of(trial), now) > self._seconds:
                del self._heard[run_of(trial)]
                words = f"{run_of(trial)}  no report for {self._seconds:g} s: its process is killed"
                self._console.print(words, markup=False, highlight=False, soft_wrap=True)
                ray.kill(actor)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self._heard[run_of(trial)] = time.monotonic()
