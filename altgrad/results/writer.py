"""The writer of a run's folder: rows are buffered and written as parts, which are merged when there are many."""

from __future__ import annotations

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
from altgrad.text.json_text import json_text

_MANY_PARTS = 64
_ID = 8  # characters of an owner's id in its parts' names


class RunWriter:
    """Writes one run's folder.  A row that arrives `flush_seconds` after the last flush causes the next one.

    If storage refuses after the run has started, training continues: parts stay in memory and are written later, until
    the limit of an `Outage` is reached.  A retry writes a part under the same name, so that an upload whose answer was
    lost does no harm.  64 parts are merged into one, and at the end all parts, so that a reader opens few files.
    """

    def __init__(self, folder: Folder, attempt: int = 0, flush_seconds: float = 2.0, owner: str = "") -> None:
        """`owner`: the random id of the writing process, see `lease`; "" if no other process can write here."""
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
        """Write `run.json` from `info` (see `Run`) and delete the end record of an earlier attempt.

        Raises OSError at once if the folder cannot be written: retries are for storage that has worked before.
        """
        if self.folder.has("end.json"):
            self.folder.delete("end.json")
        own = {"schema": SCHEMA, "attempt": self.attempt, "started": time.time()}
        self.folder.write_json("run.json", own | ({"owner": self._owner} if self._owner else {}) | dict(info))

    def step(self, record: Mapping[str, float]) -> None:
        """Add the record of one step: `step` and metrics by name.  Raises KeyError for a name not in `METRICS`."""
        self._add("steps", {"time": time.time(), **record})

    def own(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of the run's task by name."""
        for name, value in metrics.items():
            self._add("own", {"step": step, "name": name, "value": value})

    def layers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add per-layer rows: `step`, `layer`, `site` and layer metrics by name."""
        for row in rows:
            self._add("layers", row)

    def event(self, step: int, kind: str, /, **detail: Any) -> None:
        """Add an event of a kind in `EVENTS` with its details.  Raises ValueError for an unknown kind."""
        check_kind(kind)
        self._add("events", {"step": step, "time": time.time(), "kind": kind, "detail": json_text(detail)})

    def tensors(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to the `tensors` table, each with the histogram and the sample of one tensor."""
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
        """Write the buffered rows as new parts.  Returns whether all of them are written.

        `durable`: these and all earlier parts then survive a loss of power; a checkpoint relies on that.
        If storage refuses, the parts stay in memory for a later flush and this one returns False without waiting.
        Raises StorageRefused when storage has refused for the limit of an `Outage`.
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
        """Add an event if storage accepts writes again after an outage."""
        lasted = self._outage.over()
        if lasted is not None:
            self.event(self._last_step, "storage_outage", seconds=lasted)

    def _to_parts(self) -> None:
        """Encode the buffered rows as compressed parts, still in memory."""
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
        """Merge the newest parts of each table that has 64 of them; with `whole` merge all parts of all tables.

        If storage refuses, the parts stay unmerged, and nothing is lost.
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
        """Write the remaining rows and then `end.json`, which ends the run.  Waits up to `patience` s for storage."""
        folder = self.folder.patient(patience)
        self._to_parts()
        self._write_parts(folder)
        self._note_success()
        self._to_parts()
        self._write_parts(folder)
        self._merge(self.folder.patient(0), whole=True)  # before the end record: no file changes after it
        folder.make_durable(self._not_durable)
        write_end(folder, status, verdict, summary)


class NoWriter(RunWriter):
    """The writer of a rank whose rows another rank writes: it accepts all calls and writes nothing."""

    def start(self, info: Mapping[str, Any]) -> None:
        """Does nothing: the writing rank writes `run.json`."""

    def _add(self, table: TableName, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def flush(self, *, durable: bool = False) -> bool:
        return True

    def end(
        self, status: Status, verdict: Verdict | None, summary: Mapping[str, Any], patience: float = PATIENCE
    ) -> None:
        """Does nothing."""


def write_end(folder: Folder, status: Status, verdict: Verdict | None, summary: Mapping[str, Any]) -> None:
    """Write a run's end record.  The driver of a sweep also calls this, for a run that it stopped."""
    record = {"status": status, "verdict": asdict(verdict) if verdict else None, "summary": dict(summary)}
    folder.write_json("end.json", {"schema": SCHEMA, "ended": time.time(), **record})
