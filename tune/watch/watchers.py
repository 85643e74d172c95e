"""Isolates callbacks that only show or copy from the trials.

A terminal, a webhook or a copy may raise any exception and may hang.  Each such callback therefore runs in a separate
thread, which calls it in order; Tune's loop only puts events into a queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from ray import tune

from altgrad.text.terminal_output import one_line

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

_WAITING = 100_000  # most waiting events; further ones are dropped
_CLOSE_SECONDS = 30.0  # the time that a finished sweep waits for the remaining events


class Watching(Protocol):
    """The wrapped callback: a callback of Tune that is also a context manager."""

    def __enter__(self) -> object: ...
    def __exit__(self, *error: object) -> None: ...


class Watcher(tune.Callback):
    """Context in which a `Watching` callback is called in a thread; its exceptions and delays have no effect outside.

    At the first failure `tell` is called, once, with a line that contains `name` and the reason.  Later events are
    still passed on.
    """

    def __init__(
        self, callback: Watching, name: str, tell: Callable[[str], None], close_seconds: float = _CLOSE_SECONDS
    ) -> None:
        self._callback, self._name, self._tell = callback, name, tell
        self._close_seconds = close_seconds
        self._events: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks with its own state, which a resumed sweep does not read

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._lost(f"did not come to its end within {self._close_seconds:g} s")

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._put(("on_trial_start", {"trial": trial}))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self._put(("on_trial_result", {"trial": trial, "result": dict(result)}))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._put(("on_trial_complete", {"trial": trial}))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._put(("on_trial_recover", {"trial": trial}))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._put(("on_trial_error", {"trial": trial}))

    def _put(self, event: tuple[str, dict[str, Any]] | None) -> None:
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._lost("does not keep up")

    def _work(self) -> None:
        try:
            with self._callback:
                while (event := self._events.get()) is not None:
                    try:
                        getattr(self._callback, event[0])(iteration=0, trials=[], **event[1])
                    except BaseException as error:  # rich, for example, raises SystemExit on a broken pipe
                        self._lost(_reason(error))
        except BaseException as error:
            self._lost(_reason(error))

    def _lost(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._tell(f"{self._name} is incomplete: {reason}; the sweep goes on")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
