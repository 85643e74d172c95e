"""A webhook for collapses, failures and the end of a sweep: a separate thread posts JSON, so training never waits.

The address of a webhook is often its secret, so it is never written to a file or into a message.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from altgrad.commands.web.direct_http import open_directly, why_not
from altgrad.text.json_text import json_text

_TRIES = 4
_FIRST_DELAY = 1.0  # seconds, doubled after each try
_ANSWER_SECONDS = 10
_WAITING = 1000  # messages in the queue; newer ones are dropped, since the results folder has all events


def check_address(address: str) -> str:
    """The host of a webhook's address.  Raises ValueError, which does not repeat the text, for anything else."""
    refusal = ValueError("a webhook: expected an http:// or https:// address")
    if not address.isascii() or any(character <= " " or character == "\x7f" for character in address):
        raise refusal
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its message repeats parts of the address
        raise refusal from None
    if parts.scheme not in ("http", "https") or not host:
        raise refusal
    return host


class Webhook:
    """Posts messages to an http(s) address in order.  Raises ValueError for any other address."""

    def __init__(self, address: str) -> None:
        self._address, self._host = address, check_address(address)
        self._messages: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_WAITING)
        self._given_up = False  # true once `close` has stopped waiting for the queue
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, kind: str, /, **fields: Any) -> None:
        """Queue a message {"event": kind, "time": ..., **fields} and return at once."""
        if not self._messages.full():
            self._messages.put_nowait({"event": kind, "time": time.time(), **fields})

    def close(self, seconds: float = 15.0) -> None:
        """Wait until the queued messages are posted, for at most `seconds`."""
        if not self._messages.full():
            self._messages.put_nowait(None)
        self._thread.join(seconds)
        self._given_up = True

    def _work(self) -> None:
        while (message := self._messages.get()) is not None and not self._given_up:
            problem = self._deliver(message)
            if problem is not None:
                with suppress(OSError, ValueError):  # stderr may be closed
                    print(f"--notify: {self._host} {problem}; one message is lost", file=sys.stderr)

    def _deliver(self, message: Mapping[str, Any]) -> str | None:
        """Post one message, in up to four tries.  Returns None, or why it failed, in words without the address."""
        problem = None
        for attempt in range(_TRIES):
            try:
                body = json_text(message).encode()
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(self._address, body, headers, method="POST")
                with open_directly(request, _ANSWER_SECONDS):
                    return None
            except Exception as error:  # exceptions for bad addresses and non-HTTP answers have no common class
                problem = why_not(error)
                if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
                    break
            if attempt + 1 < _TRIES:
                time.sleep(_FIRST_DELAY * 2**attempt)
        return problem
