"""Handles Ctrl-C, SIGTERM and a closed terminal, from the time at which a sweep has a folder and can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A signal that ends the sweep at once."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


class Interrupts:
    """Context in which SIGINT and SIGTERM end the sweep.

    While trials train (`orderly`), the first signal asks them to stop; a second one, or one outside, raises
    `Interrupted`.  SIGHUP, which a closed terminal sends, is ignored, because it is no request to stop; Ray's
    processes, which are started inside, inherit that.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None  # the first signal
        self._stop: Callable[[signal.Signals], None] | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def orderly(self, stop: Callable[[signal.Signals], None]) -> Iterator[None]:
        """Context in which the first signal calls `stop`, also one that came earlier and that a library swallowed."""
        self._stop = stop
        if self.asked is not None:
            stop(self.asked)
        try:
            yield
        finally:
            self._stop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        stop, self._stop = self._stop, None
        self.asked = self.asked or signal.Signals(number)
        if stop is None:
            raise Interrupted(signal.Signals(number))
        stop(signal.Signals(number))
