"""The display of a running sweep: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from altgrad.results import RecordError, Status, read_end
from altgrad.storage.folder import Folder
from altgrad.text.number_text import ABSENT, duration, number
from altgrad.text.terminal_output import cell, say
from tune.cluster.ray_trial import run_of, why_failed
from tune.plan.trial import Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

LINE_SECONDS = 10.0  # between two progress lines of one trial
_STYLE = {"running": "cyan", "completed": "green", "collapsed": "red", "failed": "bold red", "waiting": "dim"}
_HEADS = ("Trial", "Format", "Step", "Loss", "Training vs BF16", "Stalled", "Overflow", "Status", "ETA")


@dataclass
class TrialState:
    """The newest values of a trial; None: not measured yet."""

    trial: Trial
    status: Status | str = "waiting"
    step: int = 0
    loss: float | None = None
    gap: float | None = None
    stall_rate: float | None = None
    overflow_rate: float | None = None
    reason: str = ""
    note: str = ""  # a further message of the trial's process
    started: tuple[float, int] | None = None  # monotonic time and step of the first report of this attempt
    updated: float = 0.0

    def take(self, result: Mapping[str, Any]) -> None:
        """Take over a report."""
        now = time.monotonic()
        if self.started is None:
            self.started = (now, int(result["step"]))
        self.updated = now
        self.step, self.status = int(result["step"]), result["status"]
        self.loss = result.get("loss", self.loss)
        self.gap = result.get("gap_to_baseline", self.gap)
        self.stall_rate = result.get("stall_rate", self.stall_rate)
        self.overflow_rate = result.get("overflow_rate", self.overflow_rate)
        self.reason = result.get("reason", self.reason)

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

    def cells(self) -> tuple[str, ...]:
        """The row under `_HEADS`."""
        return (
            self.trial.run,
            self.trial.config.format,
            f"{self.step}/{self.trial.config.max_steps}",
            number(self.loss, 4),
            self._gap_text(),
            _percent(self.stall_rate),
            _percent(self.overflow_rate),
            self.reason if self.status == "collapsed" and self.reason else str(self.status),
            ABSENT if self.eta is None else duration(round(self.eta)),
        )

    def _gap_text(self) -> str:
        if self.trial.is_baseline:
            return "baseline"
        return ABSENT if self.gap is None else f"{self.gap:+.3f}"


@dataclass
class _Board:
    """All trials of the sweep, also those that ended in an earlier process."""

    states: dict[str, TrialState] = field(default_factory=dict)

    def table(self, rows: int) -> Table:
        """At most `rows` trials: the running ones first, then those that ended last, then those that wait."""
        rank = {"running": 0, "waiting": 2}
        ordered = sorted(self.states.values(), key=lambda state: (rank.get(str(state.status), 1), -state.updated))
        shown = {id(state) for state in ordered[: max(1, rows)]}
        table = Table(caption=self.summary(), caption_justify="left")
        for index, head in enumerate(_HEADS):
            table.add_column(head, justify="right" if index in (2, 3, 4, 5, 6, 8) else "left", no_wrap=index != 7)
        for state in self.states.values():
            if id(state) in shown:
                table.add_row(*map(cell, state.cells()), style=_STYLE.get(str(state.status), ""))
        return table

    def summary(self) -> str:
        """How many trials are in which state."""
        counts: dict[str, int] = {}
        for state in self.states.values():
            counts[str(state.status)] = counts.get(str(state.status), 0) + 1
        return ", ".join(f"{count} {status}" for status, count in counts.items())


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
        state.status, state.started = "running", None
        self._say(state, "starts")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        state = self._state(trial)
        state.take(result)
        if result.get("note", state.note) != state.note:
            state.note = result["note"]
            self._say(state, state.note, beside_table=True)
        run, now = state.trial.run, time.monotonic()
        if state.status == "running" and now - self._lines.get(run, now - LINE_SECONDS) >= LINE_SECONDS:
            self._lines[run] = now
            self._say(state, _line(state))

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
        state.loss = summary.get("final_loss", state.loss) if state.loss is None else state.loss
        state.reason = state.reason or summary.get("error") or summary.get("reason") or ""

    def _state(self, trial: TuneTrial) -> TrialState:
        return self._board.states[run_of(trial)]

    def _render(self) -> Table:
        return self._board.table(rows=self._console.height - 6)

    def _say(self, state: TrialState, what: str, *, beside_table: bool = False) -> None:
        """Print a line in a log; on a terminal only with `beside_table`, for messages that the table does not show."""
        if self._live is None or beside_table:
            say(self._console, f"{time.strftime('%H:%M:%S')}  {state.trial.run}  {what}")


def _line(state: TrialState) -> str:
    _, _, step, loss, gap, stalled, overflow, _, eta = state.cells()
    return f"{step}  loss {loss}  training vs BF16 {gap}  stalled {stalled}  overflow {overflow}  ETA {eta}"


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{number(100 * share, 3)} %"
