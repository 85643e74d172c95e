"""Leases: only one process at a time works in a folder; it holds the lease and renews the record `lease.json`.

The record names the owner (host, process, a random id), the time of the last renewal, and the seconds between renewals.
A thread renews it, so that a long compilation or a long step does not look like a dead process; if storage refuses one
renewal, the next one is tried.  A second process gets LeaseHeld, an error of one line.  It may take over when the owner
is dead: on the same machine that is known at once from the owner's process id and start time, elsewhere the lease must
have expired.  For example, an owner on another machine renews its lease every 10 s:

    last renewal less than 30 s ago    running    a second process is refused
    30 to 60 s ago                     silent     a second process is refused; screens show `silent`
    60 s ago or more                   dead       the lease has expired: a second process takes over

Guarantees.  On a local disk, taking a lease is atomic, because the folder is locked meanwhile (also on NFS if it
supports flock).  pyarrow offers no lock on an object store.  There a newcomer writes its record, waits `_SETTLE` (1 s)
and reads it back: of two newcomers at the same time the later write wins and the other is refused, provided that a
write takes less than 1 s.  An owner that cannot reach the storage until its lease expires may be replaced; when it
notices, it stops.  Neither overwrites files of the other, since the names of parts contain the id of their owner.
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
_PACES = 6  # renewals that an owner must miss before its lease has expired
_SETTLE = 1.0  # seconds before a newcomer on an object store reads its lease back
Life = Literal["running", "silent", "dead"]


class LeaseHeld(ValueError):
    """Another process holds the lease of the folder; the message is one line."""


class LeaseRecord(Record):
    """`lease.json`; times are in seconds since 1970 by the owner's clock."""

    owner: str
    host: str
    pid: int
    process: str  # boot, process namespace and start time: a later process may get the same pid
    since: Finite
    renewed: Finite
    pace: Finite
    group: str | None = None


class Lease:
    """The lease of a folder, held by this process from `take` to `release`."""

    def __init__(self, folder: Folder, group: str | None) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = folder
        self._fields = {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(), "group": group}
        self._fields |= {"process": _process(os.getpid()), "since": time.time(), "pace": PACE}
        self._made: str | None = None  # the topmost local folder that was created for this lease
        self._over = threading.Event()
        self._successor: str | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True, name="altgrad-lease")

    @classmethod
    def take(cls, folder: Folder, group: str | None = None, *, wait: bool = False) -> Lease:
        """Take the lease of a folder and renew it from now on.

        `group`: a process takes over at once from an owner of the same group, as a trial of a sweep does when it starts
        again on another machine.  `wait`: if the owner may be dead, wait until its lease expires.
        Raises LeaseHeld if another process holds the lease, OSError if storage refuses.
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
        """Raises LeaseHeld if another process has taken over the folder."""
        if self._successor is not None:
            raise LeaseHeld(self._successor)

    def release(self) -> None:
        """Stop renewing and delete the record; if storage refuses that, the lease expires by itself.

        A folder that was created for the lease and is empty otherwise is removed: a refused run leaves no folder.
        """
        self._over.set()
        self._thread.join(timeout=PACE)
        with suppress(OSError, RecordError):
            if self._successor is None and _owner(self._folder.patient(0)) == self.owner:
                with _locked(self._folder):
                    self._folder.patient(0).delete(LEASE)
                    self._remove_what_was_made()

    def _remove_what_was_made(self) -> None:
        """Remove the folders that were created for the lease.  Raises OSError at the first one that is not empty."""
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
        """Whether this process may take over from another owner: one of the same group, or a dead one."""
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
    """The lease record of a folder; None if there is none or it is malformed.  Raises OSError."""
    try:
        return {"group": None} | read_record(folder, LEASE, LeaseRecord)
    except (FileNotFoundError, RecordError):
        return None


def life_of(folder: Folder, lease: Mapping[str, Any], now: float | None = None) -> Life:
    """Whether the owner of a lease is alive: by its process if it runs on this machine, else by its last renewal.

    `now`: the time by the storage's clock, if known.  It is compared with the storage's time stamp of the record, so
    that a wrong clock of the owner's machine does no harm.
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
    """The time by the storage's clock, from the stamp of a file written for this; None for a lease of this host."""
    if lease["host"] == socket.gethostname():
        return None
    name = f".clock-{uuid.uuid4().hex[:8]}"
    folder.write_bytes(name, b"")
    stamp = folder.filesystem.get_file_info(f"{folder.path}/{name}").mtime_ns
    folder.delete(name)
    return None if stamp is None else stamp / 1e9


def _system() -> str:
    """An id of this boot of this machine and of its process namespace: a container numbers its own processes."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _same_system(process: str) -> bool:
    system = _system()
    return bool(system) and process.startswith(f"{system} ")


def _process(pid: int) -> str:
    """An id that distinguishes a process from a later one with the same pid; "" if it is gone or /proc is missing."""
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *others = stat.rpartition(")")[2].split()
        return "" if state in "ZX" else f"{_system()} {others[18]}"
    return ""


def _first_missing(path: str) -> str | None:
    """The topmost missing folder of a path; None if all of its folders exist."""
    missing = None
    while not os.path.exists(path):
        missing, path = path, os.path.dirname(path)
    return missing


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """Create a local folder and lock it for this process; for an object store this does nothing."""
    if not folder.is_local:
        yield
        return
    descriptor = _locked_descriptor(folder.path)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked_descriptor(path: str) -> int:
    """A descriptor of the folder at a path, created and locked.

    The previous owner may remove the folder while this process waits for the lock; then it is created and locked again.
    """
    import fcntl  # Windows lacks it

    while True:
        os.makedirs(path, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a network file system may have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)
