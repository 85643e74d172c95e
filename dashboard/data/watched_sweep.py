"""A sweep in the dashboard's memory: shared by all viewers, cheap to refresh, and read only as far as pages need it.

Its runs are `altgrad.results.Run`s whose tables come from memory, so comparisons and reports, which take `Run`s, work
on them unchanged.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from altgrad.results import RecordError, Run, Status, TableName, read_run
from altgrad.results.annotations import ANNOTATIONS, Annotations, read_annotations
from altgrad.results.reading.run import copies
from altgrad.show.sweep_progress import planned_runs
from altgrad.storage.folder import Folder
from dashboard.data.run_tables import RunTables

Result = TypeVar("Result")
_LOOK_AGAIN_SECONDS = 0.5  # between two looks at the folder, which all viewers share
_STATUS_SECONDS = 5.0  # between two checks whether running runs have been killed
_READERS_OF_REMOTE = 16  # threads: an object store answers slowly, but many at a time; a disk gets one per core
_MOST_REMEMBERED = 5000


@dataclass(frozen=True)
class WatchedRun(Run):
    """A run whose tables are kept in memory, with the status at the last look at its folder."""

    tables: RunTables
    observed_status: Status

    @property
    def status(self) -> Status:
        return self.observed_status

    def table(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        return self.tables.read(name, columns)


class WatchedSweep:
    """The runs of one sweep folder.  `refresh` looks for changes; `version` increases when there were any.

    `annotations`: what people noted about the runs.  `wrote`: this process has written something since the last look.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.version = 0
        self._unreadable: dict[str, str] = {}
        self.annotations = Annotations({})
        self._annotations_seen: object = None
        self.wrote = False
        self._runs: dict[str, WatchedRun] = {}
        self._signatures: dict[str, object] = {}
        self._derived: dict[object, tuple[int, Any]] = {}
        self._remembered: OrderedDict[object, tuple[WatchedRun, Any]] = OrderedDict()
        self._readers = (os.cpu_count() or 2) if folder.is_local else _READERS_OF_REMOTE
        self._lock = threading.RLock()
        self._looked = float("-inf")
        self._asked_status = float("-inf")

    @property
    def runs(self) -> list[WatchedRun]:
        """All runs that can be read, by name, without copies of others (see `broken`)."""
        left_out = self._copies()
        return [run for name, run in self._runs.items() if name not in left_out]

    @property
    def broken(self) -> dict[str, str]:
        """Folder name -> why it is left out: it cannot be read, or is a copy of another one."""
        return self._unreadable | self._copies()

    def _copies(self) -> dict[str, str]:
        return self.derived("copies", lambda: copies(self._runs.values()))

    @property
    def planned(self) -> int | None:
        """The number of runs in the sweep's plan; None if its `sweep.json` is missing or unusable."""
        return planned_runs(self.folder)

    def run(self, name: str) -> WatchedRun | None:
        """The run with that name; None if there is none."""
        return next((run for run in self.runs if run.name == name), None)

    def refresh(self) -> int:
        """Read new and changed runs; returns the version.  Raises OSError if storage refuses."""
        with self._lock:
            if time.monotonic() - self._looked < _LOOK_AGAIN_SECONDS:
                return self.version
            listing = self.folder.list()
            annotated = self._read_annotations(listing)
            signatures = self._look(listing)
            changed = [name for name, signature in signatures.items() if self._signatures.get(name) != signature]
            gone = self._signatures.keys() - signatures.keys()
            self._signatures = signatures
            self._drop(gone)
            with ThreadPoolExecutor(self._readers) as pool:
                loaded = list(pool.map(self._load, changed))
            if self._take_in(changed, loaded) or gone or self._status_changed() or annotated or self.wrote:
                self.version += 1
            self.wrote = False
            self._looked = time.monotonic()
            return self.version

    def look_again(self) -> None:
        """Let the next `refresh` look at once and raise the version: this process has just written something."""
        with self._lock:
            self._looked = float("-inf")
            self.wrote = True

    def derived(self, key: object, compute: Callable[[], Result]) -> Result:
        """`compute()`, remembered under `key` until the version changes."""
        with self._lock:
            held = self._derived.get(key)
            if held is None or held[0] != self.version:
                held = (self.version, compute())
                self._derived[key] = held
            return held[1]

    def remembered(self, run: WatchedRun, key: object, compute: Callable[[], Result]) -> Result:
        """`compute()` for one run, remembered under `key` until that run changes.

        Of more than 5000 results, the least recently used are forgotten.
        """
        with self._lock:
            held = self._remembered.get((run.name, key))
            if held is not None and held[0] is run:
                self._remembered.move_to_end((run.name, key))
                return held[1]
        result = compute()
        with self._lock:
            self._remembered[run.name, key] = (run, result)
            while len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return result

    def prefetch(self, runs: Iterable[WatchedRun], name: TableName, columns: Sequence[str]) -> None:
        """Read columns of many runs in parallel, so that later reads find them in memory."""
        missing = [run for run in runs if not run.tables.holds(name, columns)]
        if missing:
            with ThreadPoolExecutor(self._readers) as pool:
                list(pool.map(lambda run: run.table(name, columns), missing))

    def _read_annotations(self, listing: Sequence[pafs.FileInfo]) -> bool:
        """Read the annotations if their file is another one than before; returns whether they changed."""
        seen = next(((info.mtime_ns, info.size) for info in listing if info.base_name == ANNOTATIONS), None)
        if seen == self._annotations_seen and not self.wrote:
            return False
        before, self.annotations = self.annotations, read_annotations(self.folder)
        self._annotations_seen = seen
        return before != self.annotations

    def _look(self, listing: Sequence[pafs.FileInfo]) -> dict[str, object]:
        """Run folder -> a signature that changes with the run: with its end record, its attempt, and new parts."""
        found = {
            info.base_name: info.mtime_ns
            for info in listing
            if info.type == pafs.FileType.Directory and not info.base_name.startswith(".")
        }
        unfinished = [name for name in found if name not in self._runs or self._runs[name].end is None]
        if self.folder.is_local:
            steps = self.folder.filesystem.get_file_info([f"{self.folder.path}/{name}/steps" for name in unfinished])
            changes = [info.mtime_ns for info in steps]
        else:  # object stores have no folder times
            changes = [len((self.folder / name).list(recursive=True)) for name in unfinished]
        last_change = dict(zip(unfinished, changes, strict=True))
        kept = {name: signature for name, signature in self._signatures.items() if name not in last_change}
        return {
            name: kept[name]
            if name in kept and kept[name][0] == mtime  # type: ignore[index]
            else (mtime, last_change.get(name))
            for name, mtime in found.items()
        }

    def _load(self, name: str) -> WatchedRun | str | None:
        """The run in a folder, or a sentence why it cannot be read; None if the folder has no run.json."""
        try:
            run = read_run(self.folder / name)
            known = self._runs.get(name)
            tables = known.tables if known is not None else RunTables(run.folder)
            tables.expect_more()
            return WatchedRun(run.folder, run.info, run.end, tables, run.status)
        except FileNotFoundError:
            return None
        except (RecordError, OSError) as error:
            return str(error)

    def _take_in(self, names: list[str], loaded: list[WatchedRun | str | None]) -> bool:
        for name, run in zip(names, loaded, strict=True):
            self._drop({name})
            if isinstance(run, WatchedRun):
                self._runs[name] = run
            elif run is not None:
                self._unreadable[name] = run
        self._runs = dict(sorted(self._runs.items()))
        return bool(names)

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._runs.pop(name, None)
            self._unreadable.pop(name, None)

    def _status_changed(self) -> bool:
        """Whether a run that counted as running has been killed or has ended since the last check."""
        if time.monotonic() - self._asked_status < _STATUS_SECONDS:
            return False
        self._asked_status = time.monotonic()
        silent = False
        for name, run in self._runs.items():
            if run.observed_status == "running":
                status = Run(run.folder, run.info, run.end).status
                self._runs[name] = replace(run, observed_status=status)
                silent |= status != "running"
        return silent
