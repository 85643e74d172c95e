"""Watches the processes of a private Ray, which Ray itself does not do.

If its raylet dies, the driver waits without end; if its GCS dies, Ray's core aborts the driver a minute later, without
a message about the sweep.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil

EXIT_CODE = 3  # of a sweep whose Ray did not start, or died
_SECONDS = 0.1  # between two checks; it must be short, or the rest of Ray prints twenty lines about the death first
_WATCHED = {"raylet": "raylet", "gcs_server": "control service (GCS)"}


class RayFailed(RuntimeError):
    """The private Ray did not start; the message is one line."""


@contextmanager
def watched_ray(processes: Mapping[str, list[Any]], on_death: Callable[[str], None]) -> Iterator[None]:
    """Context in which the death of a Ray process calls `on_death(which)` and ends this process with `EXIT_CODE`.

    `processes`: lists of Ray's `ProcessInfo` by kind.  The end is abrupt, because every call to a dead Ray hangs or
    aborts; the sweep can always be resumed from its results folder.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(_SECONDS):
            for kind, name in _WATCHED.items():
                dead = [info.process.pid for info in processes.get(kind, []) if info.process.poll() is not None]
                if dead and not over.is_set():
                    _kill_children()
                    with suppress(BaseException):  # an error in the callback must not prevent the exit
                        on_death(f"Ray's {name} died (process {dead[0]})")
                    os._exit(EXIT_CODE)

    thread = threading.Thread(target=work, name="raywatch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _kill_children() -> None:
    """Kill all processes that Ray has started here."""
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
