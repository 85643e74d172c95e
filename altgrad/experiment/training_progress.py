"""Progress of a single run on the terminal."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from altgrad.text.number_text import number

if TYPE_CHECKING:
    from altgrad.experiment.outcome import ExperimentResult, Report

_TINY = 0.01  # nats


@contextmanager
def without_hangups() -> Iterator[None]:
    """For its length a closed terminal, which sends SIGHUP, ends nothing: nobody asked the run to stop."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


class TrainingProgress:
    """A progress bar with the newest loss; plain lines if the output is not a terminal."""

    def __init__(self, console: Console, max_steps: int) -> None:
        self._console = console
        columns = (TextColumn("loss {task.fields[loss]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("steps", total=max_steps, loss="-")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, report: Report) -> None:
        """Show a report of the runner."""
        loss = _loss(report.rows[-1]["loss"], report.loss_unit) if report.rows else "-"
        self._bar.update(self._task, completed=report.step, loss=loss)
        if not self._console.is_terminal and report.step % max(1, report.max_steps // 10) == 0:
            self._console.print(f"step {report.step}/{report.max_steps}  loss {loss}")

    def announce(self, sentence: str) -> None:
        """Print a sentence unchanged, without line breaks or markup."""
        self._console.print(sentence, soft_wrap=True, markup=False, highlight=False)

    @staticmethod
    def summary(result: ExperimentResult) -> str:
        """A text about how the run ended and where its results are."""
        value, unit = result.final_validation_loss, result.loss_unit
        loss = "no validation loss" if value is None else f"validation loss {_loss(value, unit)}{unit and f' {unit}'}"
        line = f"{result.run}: {result.status} after {result.steps} steps, {loss}, {result.seconds:.0f} s"
        if result.verdict is not None:
            line += f"\n{result.verdict.sentence()}\nreport: {result.folder / 'failure_report.md'}"
        return line + f"\nresults: {result.folder}"


def _loss(value: float, unit: str) -> str:
    """A loss in nats with four decimals; a tiny one, and one in another unit, with five significant digits."""
    return f"{value:.4f}" if unit == "nats" and math.isfinite(value) and abs(value) >= _TINY else number(value, 5)
