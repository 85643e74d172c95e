"""Watches the processes of our own Ray, for Ray does not.

Without its raylet the driver waits for ever; without its GCS it is aborted by Ray's core a minute later, without a word
about the sweep.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil

EXIT_CODE = 3  # of a sweep whose Ray could not be started, or died
_SECONDS = 0.1  # between two looks: what is left of Ray says the same in twenty lines, if it has the time
_WATCHED = {"raylet": "raylet", "gcs_server": "control service (GCS)"}


class RayFailed(RuntimeError):
    """A Ray of our own that did not start; the message is one line."""


@contextmanager
def watched_ray(processes: Mapping[str, list[Any]], on_death: Callable[[str], None]) -> Iterator[None]:
    """For its length, end this process with `EXIT_CODE` when a process of Ray dies, after `on_death(which)`.

    `processes`: lists of Ray's `ProcessInfo` by kind.  The end is abrupt, because every call to a dead Ray hangs or
    aborts; the results folder is always in a state to go on from.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(_SECONDS):
            for kind, name in _WATCHED.items():
                dead = [info.process.pid for info in processes.get(kind, []) if info.process.poll() is not None]
                if dead and not over.is_set():
                    _kill_children()
                    with suppress(BaseException):  # the process ends, whatever the last words meet
                        on_death(f"Ray's {name} died (process {dead[0]})")
                    os._exit(EXIT_CODE)

    thread = threading.Thread(target=work, name="raywatch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _kill_children() -> None:
    """What Ray has started and has not lost yet."""
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
