"""`sweep.log` in the sweep's folder: messages that cannot be printed, such as the loss of the output or of a watcher.

If storage refuses a line, it is lost, and the sweep goes on.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import one_line

LOG = "sweep.log"


class Journal:
    """Collects lines until the sweep has a folder, then writes them there, after the lines of earlier attempts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Folder | None = None
        self._lines: list[str] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been noted."""
        return not self._lines

    def note(self, what: str) -> None:
        """Add a line."""
        with self._lock:
            self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {one_line(what)}\n")
            self._write()

    def keep_in(self, folder: Folder) -> None:
        """Write the lines to the sweep's folder from now on."""
        with self._lock, suppress(Exception):  # the exceptions of object stores' libraries have no common class
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
        """Note that the output is lost; a callback for `unstoppable_output`."""
        self.note(f"the output cannot be written any more ({reason}); the sweep goes on without it")
