"""Writes a run's folder: rows are buffered, flushed as parts, and many parts become one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from altgrad.events import check_kind
from altgrad.results.part_file import encoded
from altgrad.results.parts import merge_newest, merge_parts, part_name
from altgrad.results.schema import SCHEMA, SCHEMAS, Status, TableName, Verdict
from altgrad.storage.folder import Folder
from altgrad.storage.patience import PATIENCE, Outage

_MANY_PARTS = 64
_ID = 8  # characters of an owner's id in its parts' names


class RunWriter:
    """Writes one run's folder.  Rows are buffered and flushed as a part at least every `flush_seconds`.

    Storage that refuses, once the run has started, does not stop it: parts stay in memory and are tried again, up to
    the limit of an `Outage`.  A part is tried under its one name, so that an upload whose answer was lost does no harm.
    Parts are merged when there are many, and at the end all of them: a reader opens few files.
    """

    def __init__(self, folder: Folder, attempt: int = 0, flush_seconds: float = 2.0, owner: str = "") -> None:
        """`owner`: the random id of the process that writes, see `lease`; "" where nobody else can come."""
        self.folder = folder
        self.attempt = attempt
        self._owner = owner
        self._flush_seconds = flush_seconds
        self._rows: dict[TableName, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        self._part = 0
        self._unwritten: dict[tuple[TableName, str], bytes] = {}  # parts by table and file name
        self._recent: dict[TableName, dict[str, pa.Table]] = {name: {} for name in SCHEMAS}  # not merged yet
        self._not_durable: list[str] = []
        self._outage = Outage(folder)
        self._last_step = 0
        self._last_flush = time.monotonic()

    def start(self, info: Mapping[str, Any]) -> None:
        """Write `run.json` from `info` (see `Run`); removes an earlier attempt's end record.

        Raises OSError where the folder cannot be written: what was never possible is not waited for.
        """
        if self.folder.has("end.json"):
            self.folder.delete("end.json")
        own = {"schema": SCHEMA, "attempt": self.attempt, "started": time.time()}
        self.folder.write_json("run.json", own | ({"owner": self._owner} if self._owner else {}) | dict(info))

    def step(self, record: Mapping[str, float]) -> None:
        """One step's record: `step` and metrics by name.  Raises KeyError for a name that `METRICS` lacks."""
        self._add("steps", {"time": time.time(), **record})

    def layers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Per-layer rows: `step`, `layer`, `site` and layer metrics by name."""
        for row in rows:
            self._add("layers", row)

    def event(self, step: int, kind: str, /, **detail: Any) -> None:
        """Something that happened: a kind of `EVENTS`, and its particulars.  Raises ValueError for another kind."""
        check_kind(kind)
        self._add("events", {"step": step, "time": time.time(), "kind": kind, "detail": json.dumps(detail)})

    def tensors(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Histogram and sample rows of the `tensors` table."""
        for row in rows:
            self._add("tensors", row)

    def _add(self, table: TableName, row: Mapping[str, Any]) -> None:
        unknown = row.keys() - set(SCHEMAS[table].names)
        if unknown:
            raise KeyError(f"{table}: no column {sorted(unknown)}; metrics are declared in altgrad/metrics.py")
        self._rows[table].append({"attempt": self.attempt, **row})
        if time.monotonic() - self._last_flush >= self._flush_seconds:
            self.flush()

    def flush(self, *, durable: bool = False) -> bool:
        """Write the buffered rows as new parts; whether storage has taken all of them.

        `durable`: these and all earlier parts outlast a loss of power, as a checkpoint that counts on them does.
        What it refuses stays here for the next flush, tried when the outage says so: training must not wait for it.
        Raises StorageRefused once storage has refused for an outage's limit.
        """
        if not self._outage.due:
            return False
        self._to_parts()
        try:
            self._write_parts(self.folder.patient(0))
            if durable:
                self.folder.make_durable(self._not_durable)
                self._not_durable.clear()
        except OSError as error:
            self._outage.refused(error)
            return False
        self._merge(self.folder.patient(0), whole=False)
        self._note_success()
        return True

    def _note_success(self) -> None:
        """An event for an outage that is over."""
        lasted = self._outage.over()
        if lasted is not None:
            self.event(self._last_step, "storage_outage", seconds=lasted)

    def _to_parts(self) -> None:
        """Turn the buffered rows into parts, compressed."""
        for table, rows in self._rows.items():
            if rows:
                self._last_step = int(rows[-1]["step"])
                part = part_name(self.attempt, self._part, self._owner[:_ID])
                self._recent[table][part] = pa.Table.from_pylist(rows, schema=SCHEMAS[table])
                self._unwritten[table, part] = encoded(table, self._recent[table][part])
                self._rows[table] = []
        self._part += 1
        self._last_flush = time.monotonic()

    def _write_parts(self, folder: Folder) -> None:
        while self._unwritten:
            (table, part), content = next(iter(self._unwritten.items()))
            folder.write_bytes(f"{table}/{part}", content)
            del self._unwritten[table, part]
            self._not_durable.append(f"{table}/{part}")

    def _merge(self, folder: Folder, whole: bool) -> None:
        """Merge the newest parts of a table that has many, or all there are.

        Storage that refuses costs nothing but that: the parts stay.
        """
        for table, recent in self._recent.items():
            if whole or len(recent) >= _MANY_PARTS:
                with suppress(OSError):
                    if whole:
                        merge_parts(folder, table, recent)
                    else:
                        merge_newest(folder, table, recent)
                self._recent[table] = {}

    def end(
        self, status: Status, verdict: Verdict | None, summary: Mapping[str, Any], patience: float = PATIENCE
    ) -> None:
        """Write what is left and `end.json`: after this the run is over.  Waits `patience` seconds for storage."""
        folder = self.folder.patient(patience)
        self._to_parts()
        self._write_parts(folder)
        self._note_success()
        self._to_parts()
        self._write_parts(folder)
        self._merge(self.folder.patient(0), whole=True)  # before the end record: after it nothing changes any more
        folder.make_durable(self._not_durable)
        write_end(folder, status, verdict, summary)


class NoWriter(RunWriter):
    """Stands in for the writer on a rank whose rows another rank writes: takes everything, touches no storage."""

    def start(self, info: Mapping[str, Any]) -> None:
        """Nothing: the writing rank has said it."""

    def _add(self, table: TableName, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def flush(self, *, durable: bool = False) -> bool:
        return True

    def end(
        self, status: Status, verdict: Verdict | None, summary: Mapping[str, Any], patience: float = PATIENCE
    ) -> None:
        """Nothing."""


def write_end(folder: Folder, status: Status, verdict: Verdict | None, summary: Mapping[str, Any]) -> None:
    """Write a run's end record (also by the sweep's driver, for a run that it stopped)."""
    record = {"status": status, "verdict": asdict(verdict) if verdict else None, "summary": dict(summary)}
    folder.write_json("end.json", {"schema": SCHEMA, "ended": time.time(), **record})
