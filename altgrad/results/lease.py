"""Who works in a folder: one process at a time, known by a small record that it renews, `lease.json`.

The record says who (host, process, a random id), when it was renewed, and how long the next renewal may take.  A thread
renews it, so a compilation or a step of minutes is no silence; storage that refuses costs a renewal, nothing else.
Whoever comes second is refused with one line.  An owner that is gone is succeeded at once where that can be known
(same machine: its process id and start time), else when its lease has expired.

What is guaranteed.  On a local disk taking a lease is atomic (the folder is locked meanwhile; NFS does that too where
it supports flock).  An object store has no lock that pyarrow reaches: the newcomer writes, waits `_SETTLE` seconds and
reads back, so of two that come at once the later write wins and the other is refused, as long as a write takes less
than that.  An owner cut off from storage until its lease expires may find a successor: then it stops, and nothing of
either is overwritten, for the names of an attempt's parts carry its owner's id.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from altgrad.results.records import Finite, Record, RecordError, read_record
from altgrad.storage.folder import Folder

LEASE = "lease.json"
PACE = 10.0  # seconds between two renewals
_PACES = 6  # missed before a lease has expired
_SETTLE = 1.0  # seconds before a newcomer on an object store reads its lease back
Life = Literal["running", "silent", "dead"]


class LeaseHeld(ValueError):
    """Another process works in the folder; the message is one line."""


class LeaseRecord(Record):
    """`lease.json`; times in seconds since 1970 by the owner's clock."""

    owner: str
    host: str
    pid: int
    process: str  # start time and namespaces: another process may get the same number
    since: Finite
    renewed: Finite
    pace: Finite
    group: str | None = None


class Lease:
    """A folder held by this process.  `take` it, `release` it."""

    def __init__(self, folder: Folder, group: str | None) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = folder
        self._fields = {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(), "group": group}
        self._fields |= {"process": _process(os.getpid()), "since": time.time(), "pace": PACE}
        self._made: str | None = None  # the topmost local folder that was made for this lease
        self._over = threading.Event()
        self._successor: str | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True, name="altgrad-lease")

    @classmethod
    def take(cls, folder: Folder, group: str | None = None, *, wait: bool = False) -> Lease:
        """Hold a folder from now on.

        `group`: those of one group succeed each other at once: a sweep's trial that starts again elsewhere.  `wait`:
        wait for the lease of an owner that may be dead to expire.  Raises LeaseHeld, OSError.
        """
        lease = cls(folder, group)
        until = time.monotonic() + _PACES * PACE + 2 * PACE
        while True:
            try:
                lease._try_to_take()
                break
            except LeaseHeld:
                if not wait or time.monotonic() > until:
                    raise
            except OSError:
                with suppress(OSError):
                    lease._remove_what_was_made()
                raise
            time.sleep(1.0)
        lease._thread.start()
        return lease

    def check(self) -> None:
        """Raise LeaseHeld where another process has succeeded this one."""
        if self._successor is not None:
            raise LeaseHeld(self._successor)

    def release(self) -> None:
        """Let the folder go; what storage refuses now expires by itself.

        A folder that was made for the lease and got nothing else is removed: whoever was refused leaves nothing behind.
        """
        self._over.set()
        self._thread.join(timeout=PACE)
        with suppress(OSError, RecordError):
            if self._successor is None and _owner(self._folder.patient(0)) == self.owner:
                with _locked(self._folder):
                    self._folder.patient(0).delete(LEASE)
                    self._remove_what_was_made()

    def _remove_what_was_made(self) -> None:
        """Raises OSError at the first folder that has something in it."""
        path = self._folder.path
        while self._made is not None and len(path) >= len(self._made):
            os.rmdir(path)
            path = os.path.dirname(path)

    def _try_to_take(self) -> None:
        if self._folder.is_local and self._made is None:
            self._made = _first_missing(self._folder.path)
        with _locked(self._folder):
            found = read_lease(self._folder)
            if found is not None and not self._succeeds(found):
                raise LeaseHeld(f"{self._folder}: {_holder(found)}")
            self._write()
            if self._folder.is_local:
                return
            time.sleep(_SETTLE)
            there = read_lease(self._folder)
            if there is not None and there["owner"] != self.owner:
                raise LeaseHeld(f"{self._folder}: {_holder(there)}")

    def _succeeds(self, other: Mapping[str, Any]) -> bool:
        """Whether this process may take the place of another owner."""
        if self._fields["group"] is not None and other["group"] == self._fields["group"]:
            return True
        return life_of(self._folder, other, now=_storage_time(self._folder, other)) == "dead"

    def _keep(self) -> None:
        folder = self._folder.patient(0)
        while not self._over.wait(PACE):
            with suppress(OSError):
                found = read_lease(folder)
                if found is not None and found["owner"] != self.owner:
                    self._successor = f"{self._folder}: {_holder(found)}"
                    return
                if not self._over.is_set():
                    self._write(folder)

    def _write(self, folder: Folder | None = None) -> None:
        (folder or self._folder).write_json(LEASE, self._fields | {"renewed": time.time()})


def read_lease(folder: Folder) -> dict[str, Any] | None:
    """The lease of a folder; None where nobody holds it, or where it cannot be read.  Raises OSError."""
    try:
        return {"group": None} | read_record(folder, LEASE, LeaseRecord)
    except (FileNotFoundError, RecordError):
        return None


def life_of(folder: Folder, lease: Mapping[str, Any], now: float | None = None) -> Life:
    """Whether the owner of a lease is there: by its process on this machine, else by when it last renewed.

    `now`: the storage's time, where it is known; its own stamp of the lease is compared with it, not another clock.
    """
    if lease["host"] == socket.gethostname() and _same_system(lease["process"]):
        alive = _process(lease["pid"]) == lease["process"]
        return "dead" if not alive else _by_age(time.time() - lease["renewed"], lease["pace"], alive=True)
    stamp = folder.filesystem.get_file_info(f"{folder.path}/{LEASE}").mtime_ns
    renewed = lease["renewed"] if stamp is None else stamp / 1e9
    return _by_age((time.time() if now is None else now) - renewed, lease["pace"])


def _by_age(age: float, pace: float, *, alive: bool = False) -> Life:
    if age < 3 * pace:
        return "running"
    return "silent" if alive or age < _PACES * pace else "dead"


def _holder(lease: Mapping[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(lease["since"]))
    left = max(0, round(lease["renewed"] + _PACES * lease["pace"] - time.time()))
    who = f"process {lease['pid']} on {lease['host']}"
    return f"{who} works in it since {since}; wait for it or stop it (its lease runs out in {left} s unless renewed)"


def _owner(folder: Folder) -> str | None:
    found = read_lease(folder)
    return None if found is None else found["owner"]


def _storage_time(folder: Folder, lease: Mapping[str, Any]) -> float | None:
    """What the storage's clock says, from the stamp of a file written for that; None where the clocks are one."""
    if lease["host"] == socket.gethostname():
        return None
    name = f".clock-{uuid.uuid4().hex[:8]}"
    folder.write_bytes(name, b"")
    stamp = folder.filesystem.get_file_info(f"{folder.path}/{name}").mtime_ns
    folder.delete(name)
    return None if stamp is None else stamp / 1e9


def _system() -> str:
    """This boot of this machine and its process numbers, which a container has of its own."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _same_system(process: str) -> bool:
    system = _system()
    return bool(system) and process.startswith(f"{system} ")


def _process(pid: int) -> str:
    """What tells a process from a later one of the same number; "" where it is not there (or no /proc is)."""
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *others = stat.rpartition(")")[2].split()
        return "" if state in "ZX" else f"{_system()} {others[18]}"
    return ""


def _first_missing(path: str) -> str | None:
    """The topmost folder of a path that is not there; None where all are."""
    missing = None
    while not os.path.exists(path):
        missing, path = path, os.path.dirname(path)
    return missing


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """A local folder, made where it is not there, for one process at a time; nothing elsewhere."""
    if not folder.is_local:
        yield
        return
    descriptor = _locked_descriptor(folder.path)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked_descriptor(path: str) -> int:
    """The locked folder at a path: not one that whoever held it before has removed meanwhile."""
    import fcntl  # not everywhere

    while True:
        os.makedirs(path, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)
