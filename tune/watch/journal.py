"""What a sweep cannot tell anybody else: that nobody can read its output any more, or that a watcher was lost.

It is written to `sweep.log` in the sweep's folder, and never in the way of anything: storage that refuses costs a line.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import one_line

LOG = "sweep.log"


class Journal:
    """Keeps lines until the sweep has a folder, then writes them there, after those of earlier attempts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Folder | None = None
        self._lines: list[str] = []

    @property
    def is_empty(self) -> bool:
        return not self._lines

    def note(self, what: str) -> None:
        """Add a line."""
        with self._lock:
            self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {one_line(what)}\n")
            self._write()

    def keep_in(self, folder: Folder) -> None:
        """From now on the lines are kept in the sweep's folder."""
        with self._lock, suppress(Exception):  # what an object store's library raises has no common class
            earlier = folder.read_bytes(LOG).decode(errors="replace") if folder.has(LOG) else ""
            self._lines[:0] = earlier.splitlines(keepends=True)
        with self._lock:
            self._folder = folder
            self._write()

    def _write(self) -> None:
        if self._folder is not None and self._lines:
            with suppress(Exception):
                self._folder.write_bytes(LOG, "".join(self._lines).encode())

    def output_lost(self, reason: str) -> None:
        """For `unstoppable_output`."""
        self.note(f"the output cannot be written any more ({reason}); the sweep goes on without it")
