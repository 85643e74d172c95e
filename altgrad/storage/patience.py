"""Retries while storage is unavailable: the disk is full, an object store answers 503, the network is down.

The delay doubles from 0.5 s to 10 s; after 300 s of refusals the operation fails with a message of one line.  The
caller decides whether to wait (`Folder.patient`) or to keep training meanwhile (`RunWriter.flush`).
"""

from __future__ import annotations

import time

PATIENCE = 300.0  # seconds of refusal that a run or a sweep survives
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 10.0


class StorageRefused(OSError):
    """Storage refused for longer than the limit; the message is one line that names the folder."""


class Outage:
    """A series of refusals by one folder.  `limit`: seconds from the first refusal to giving up."""

    def __init__(self, place: object, limit: float = PATIENCE) -> None:
        self._place, self._limit = place, limit
        self._since: float | None = None
        self._delay = _FIRST_DELAY
        self._retry_at = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to try (again)."""
        return time.monotonic() >= self._retry_at

    def refused(self, error: OSError) -> None:
        """Record a refusal and set the time of the next attempt.  Raises StorageRefused once the limit is reached."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._delay = now, _FIRST_DELAY
        if now - self._since >= self._limit:
            reason = " ".join(str(error).split())
            raise StorageRefused(f"{self._place}: storage refused for {now - self._since:.0f} s: {reason}") from error
        self._retry_at = now + self._delay
        self._delay = min(2 * self._delay, _LONGEST_DELAY)

    def wait(self) -> None:
        """Sleep until it is time to try again."""
        time.sleep(max(0.0, self._retry_at - time.monotonic()))

    def over(self) -> float | None:
        """Record a success.  Returns the seconds that the refusals before it lasted, None if there were none."""
        since, self._since, self._retry_at = self._since, None, 0.0
        return None if since is None else time.monotonic() - since
