"""Ctrl-C, SIGTERM and a closed terminal from the moment a sweep has a folder to go on from."""

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
    """For the length of its context SIGINT and SIGTERM end the sweep: in order where that is possible.

    While trials train, the first signal asks them to stop.  Before that, and for the second signal, `Interrupted` is
    raised.  SIGHUP, which a closed terminal sends, is ignored: nobody asked the sweep to stop.  Ray's processes,
    started within, inherit that.
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
        """Within, the first signal is handed to `stop`, one that a library kept to itself before that too."""
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
