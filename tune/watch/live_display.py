"""The display of a running sweep: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray import tune
from rich.console import Console
from rich.live import Live

from altgrad.results import RecordError, Status, read_end
from altgrad.show.live_table import LIVE_METRICS, LiveRow, LiveTable, progress_line
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import say
from tune.cluster.ray_trial import run_of, why_failed
from tune.plan.trial import Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

LINE_SECONDS = 10.0  # between two progress lines of one trial


@dataclass
class TrialState:
    """The newest values of a trial; a metric that was not measured yet is absent from `newest`."""

    trial: Trial
    status: Status | str = "waiting"
    step: int = 0
    newest: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    note: str = ""  # a further message of the trial's process
    warning: str = ""  # that a collapse is likely
    loss_unit: str = "nats"
    started: tuple[float, int] | None = None  # monotonic time and step of the first report of this attempt
    updated: float = 0.0

    def take(self, result: Mapping[str, Any]) -> None:
        """Take over a report."""
        now = time.monotonic()
        if self.started is None:
            self.started = (now, int(result["step"]))
        self.updated = now
        self.step, self.status = int(result["step"]), result["status"]
        self.newest |= {name: result[name] for name in LIVE_METRICS if result.get(name) is not None}
        self.loss_unit = result.get("loss_unit", self.loss_unit)
        self.reason = result.get("reason", self.reason)
        self.warning = result.get("warning", self.warning)

    @property
    def eta(self) -> float | None:
        """Seconds to the last step at the pace of this attempt; None if the pace is not known yet."""
        if self.status != "running" or self.started is None:
            return None
        since, first = self.started
        done = self.step - first
        if done <= 0:
            return None
        pace = (self.updated - since) / done
        return max(0.0, (self.trial.config.max_steps - self.step) * pace - (time.monotonic() - self.updated))

    @cached_property
    def _is_baseline(self) -> bool:
        return self.trial.is_baseline  # it reads the whole config, and the table is drawn twice a second

    def row(self) -> LiveRow:
        """The trial's row in the table."""
        config, status = self.trial.config, str(self.status)
        return LiveRow(
            self.trial.run,
            config.format,
            status,
            self.step,
            config.max_steps,
            self.newest,
            self.reason,
            is_baseline=self._is_baseline,
            eta=self.eta,
            warning=self.warning,
            loss_unit=self.loss_unit,
        )


@dataclass
class _Board:
    """All trials of the sweep, also those that ended in an earlier process."""

    states: dict[str, TrialState] = field(default_factory=dict)

    def table(self, lines: int) -> LiveTable:
        """At most `lines` lines of trials: the running ones first, then those that ended last, then those that wait."""
        rank = {"running": 0, "waiting": 2}
        states = list(self.states.values())
        order = sorted(range(len(states)), key=lambda i: (rank.get(str(states[i].status), 1), -states[i].updated))
        return LiveTable([state.row() for state in states], lines, order)


class LiveDisplay(tune.Callback):
    """Follows the trials and shows them: `Live` on a terminal, else a line per event and every few seconds.

    Goes after `EndRecords`, whose end records it reads.
    """

    def __init__(self, trials: Sequence[Trial], sweep: Folder, console: Console) -> None:
        self._sweep = sweep.patient(0)  # the display never waits for storage
        self._console = console
        self._board = _Board({trial.run: TrialState(trial) for trial in trials})
        self._lines: dict[str, float] = {}
        self._live: Live | None = None
        for state in self._board.states.values():
            self._take_end(state)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks with its own state, which a resumed sweep does not read

    def __enter__(self) -> LiveDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        state = self._state(trial)
        state.status, state.started, state.reason = "running", None, ""  # of an attempt that failed before
        self._say(state, "starts")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        state = self._state(trial)
        known = state.warning
        state.take(result)
        if state.warning != known:
            self._say(state, state.warning)
        if result.get("note", state.note) != state.note:
            state.note = result["note"]
            self._say(state, state.note, beside_table=True)
        run, now = state.trial.run, time.monotonic()
        if state.status == "running" and now - self._lines.get(run, now - LINE_SECONDS) >= LINE_SECONDS:
            self._lines[run] = now
            self._say(state, progress_line(state.row()))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ended(self._state(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ended(self._state(trial))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        what = f"{why_failed(trial)}; starts again from its last checkpoint"
        self._say(self._state(trial), what, beside_table=True)

    def _ended(self, state: TrialState) -> None:
        self._take_end(state)
        state.updated = time.monotonic()
        self._say(state, f"{state.status} at step {state.step}" + (f": {state.reason}" if state.reason else ""))

    def _take_end(self, state: TrialState) -> None:
        """Take status and reason from the run's end record, if it can be read."""
        try:
            end = read_end(self._sweep / state.trial.run)
        except RecordError as error:
            state.status, state.reason = "unreadable", str(error)
            return
        except OSError:  # storage cannot be read now: the table keeps the reported values
            return
        if end is None:
            return
        summary = end["summary"]
        state.status = end["status"]
        state.step = summary.get("steps") or state.step
        if summary.get("final_loss") is not None:
            state.newest.setdefault("loss", summary["final_loss"])
        state.reason = state.reason or summary.get("error") or summary.get("reason") or ""

    def _state(self, trial: TuneTrial) -> TrialState:
        return self._board.states[run_of(trial)]

    def _render(self) -> LiveTable:
        return self._board.table(lines=self._console.height - 6)

    def _say(self, state: TrialState, what: str, *, beside_table: bool = False) -> None:
        """Print a line in a log; on a terminal only with `beside_table`, for messages that the table does not show."""
        if self._live is None or beside_table:
            say(self._console, f"{time.strftime('%H:%M:%S')}  {state.trial.run}  {what}")
