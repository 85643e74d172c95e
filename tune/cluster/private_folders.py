"""Temporary folders of a sweep that other users cannot read, removed at its end or, after a kill, by the next sweep.

Ray makes its session folder, with logs and environment variables, readable for everybody; therefore it lies inside a
folder with mode 0700.  A file lock distinguishes the folder of a living sweep from that of a killed one: the kernel
releases a lock when its process ends, whereas a process id may be reused.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "altgrad-"
_LOCK = "lock"
_TRIES = 20  # in two seconds
# Of the 107 characters of a socket's path Ray takes 64, as in
# /session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store
_LONGEST = 107 - 64


def temporary_root(variables: tuple[str, ...] = ("RAY_TMPDIR", "TMPDIR")) -> tuple[str, str | None]:
    """(folder for temporary files, a sentence about an unusable variable or None).

    The folder is that of the first variable that is writable and short enough for Ray's sockets, else /tmp.
    """
    note = None
    for name in variables:
        place = os.environ.get(name)
        if not place:
            continue
        if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
            note = note or f"{name}={place}: no folder that can be written; using /tmp"
        elif len(os.fsencode(os.path.abspath(place))) + len(f"/{_PREFIX}12345678/r") > _LONGEST:
            note = note or f"{name}={place}: too long for the paths of Ray's sockets; using /tmp"
        else:
            return os.path.abspath(place), None
    return "/tmp", note


@contextmanager
def private_folder(place: str) -> Iterator[Path]:
    """Context with a new folder below `place`; folders that killed sweeps left there are removed first."""
    remove_dead(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))  # 0700
    lock = os.open(folder / f"{_LOCK}.new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Renamed after locking, so that nobody finds the lock of a living sweep unlocked.
        os.rename(folder / f"{_LOCK}.new", folder / _LOCK)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_dead(place: str) -> None:
    """Remove the folders of sweeps whose process has ended."""
    with suppress(OSError):
        for folder in Path(place).glob(f"{_PREFIX}*"):
            if not folder.is_symlink() and _is_dead(folder / _LOCK):
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: what a dying process of Ray still writes is then removed by the next sweep."""
    for _ in range(_TRIES):
        with suppress(OSError):
            for inside in folder.iterdir():
                if inside.is_dir() and not inside.is_symlink():
                    shutil.rmtree(inside, ignore_errors=True)
                elif inside.name != _LOCK:
                    inside.unlink()
            if [inside.name for inside in folder.iterdir()] in ([], [_LOCK]):
                (folder / _LOCK).unlink(missing_ok=True)
                try:
                    folder.rmdir()
                except OSError:  # written just now
                    (folder / _LOCK).touch(0o600)
                else:
                    return
        time.sleep(0.1)


def _is_dead(lock: Path) -> bool:
    """Whether the lock belongs to this user and no process holds it."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
