"""A webhook that is told of collapses, failures and the end: JSON by POST, from a thread that nobody waits for.

A webhook's address is often its secret, so it is never written to a file or a message.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_TRIES = 4
_FIRST_DELAY = 1.0  # seconds, doubled after each try
_ANSWER_SECONDS = 10
_WAITING = 1000  # messages; beyond that the newest are dropped: the results folder has everything


def check_address(address: str) -> str:
    """The host of a webhook's address.  Raises ValueError, without repeating it, where it is none."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a webhook: expected an http:// or https:// address")
    return parts.hostname


class Webhook:
    """Posts messages to an http(s) address in order.  Raises ValueError for another kind of address."""

    def __init__(self, address: str) -> None:
        self._address, self._host = address, check_address(address)
        self._messages: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, kind: str, /, **fields: Any) -> None:
        """Queue a message {"event": kind, "time": ..., **fields}; returns at once."""
        if not self._messages.full():
            self._messages.put_nowait({"event": kind, "time": time.time(), **fields})

    def close(self, seconds: float = 15.0) -> None:
        """Wait for the queued messages, but not longer than that."""
        if not self._messages.full():
            self._messages.put_nowait(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            self._deliver(json.dumps(message).encode())

    def _deliver(self, body: bytes) -> None:
        """Post one message; after the last try it is dropped with a line that names the host alone."""
        request = urllib.request.Request(self._address, body, {"Content-Type": "application/json"}, method="POST")
        for attempt in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS):
                    return
            except urllib.error.HTTPError as error:
                problem = f"answered {error.code}"
                if 400 <= error.code < 500 and error.code not in (408, 429):
                    break
            except OSError as error:
                problem = type(error).__name__
            if attempt + 1 < _TRIES:
                time.sleep(_FIRST_DELAY * 2**attempt)
        print(f"--notify: {self._host} {problem}; one message is lost", file=sys.stderr)
