"""The results schema: what a run leaves on disk, its writer and its readers.

A run is a folder, a sweep a folder of runs.  Tables are columnar parts that are only ever added, so that local
disks, NFS and object stores work alike and a reader fetches only new parts and the columns it wants:

    <root>/<sweep>/sweep.json              name, command, planned runs (written by the sweep)
    <root>/<sweep>/<run>/run.json          at start: schema, ids, resolved config, versions, hashes, host, device
                        /steps/part-*      one row per step; one column per metric, null = not measured
                        /layers/part-*     step x layer x site
                        /events/part-*     step, kind, detail (a JSON object)
                        /tensors/part-*    step x layer x site: log2 histogram and a small fixed sample
                        /failure_report.md only if collapsed
                        /end.json          status, verdict, summary; absent while running and after a kill

Every row carries `attempt`: of a step written twice (a restored run) the later attempt counts.
No torch, no ray: the dashboard reads through this module alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from altgrad.metrics import columns
from altgrad.outage import PATIENCE, Outage
from altgrad.storage import Folder

SCHEMA = 1
Status = Literal["running", "completed", "collapsed", "stopped", "failed", "killed"]
TableName = Literal["steps", "layers", "events", "tensors"]

_KEY: list[tuple[str, Any]] = [("step", pa.int64()), ("attempt", pa.int32())]
_SITE: list[tuple[str, Any]] = [("layer", pa.string()), ("site", pa.string())]
SCHEMAS: Mapping[TableName, pa.Schema] = {
    "steps": pa.schema([*_KEY, ("time", pa.float64()), *((name, pa.float64()) for name in columns("step"))]),
    "layers": pa.schema([*_KEY, *_SITE, *((name, pa.float64()) for name in columns("layer"))]),
    "events": pa.schema([*_KEY, ("time", pa.float64()), ("kind", pa.string()), ("detail", pa.string())]),
    # exponents[i] counts values with floor(log2|x|) = first_exponent + i; zeros and non-finite values apart
    "tensors": pa.schema(
        [
            *_KEY,
            *_SITE,
            ("first_exponent", pa.int32()),
            ("exponents", pa.list_(pa.int64())),
            ("zeros", pa.int64()),
            ("non_finite", pa.int64()),
            ("sample", pa.list_(pa.float32())),
        ]
    ),
}
_ROW_KEY: Mapping[TableName, list[str]] = {
    "steps": ["step"],
    "layers": ["step", "layer", "site"],
    "events": [],
    "tensors": ["step", "layer", "site"],
}
_SILENT_SECONDS = 60.0  # a run without end record counts as killed after this long without a new part


@dataclass(frozen=True)
class Verdict:
    """Why a run counts as collapsed: at `step`, `rule` found `metric` = `value` beyond `limit`."""

    step: int
    rule: str
    metric: str
    value: float
    limit: float
    detail: str = ""

    def sentence(self) -> str:
        """One line for tables and reports."""
        limit = f", limit {self.limit:.4g}" if math.isfinite(self.limit) else ""
        return f"{self.rule} at step {self.step}: {self.metric} {self.value:.4g}{limit}"


class RunWriter:
    """Writes one run's folder.  Rows are buffered and flushed as a part at least every `flush_seconds`.

    Storage that refuses, once the run has started, does not stop it: parts stay in memory and are tried again, up to
    the limit of an `Outage`.  A part is tried under its one name, so that an upload whose answer was lost does no harm.
    """

    def __init__(self, folder: Folder, attempt: int = 0, flush_seconds: float = 2.0) -> None:
        self.folder = folder
        self.attempt = attempt
        self._flush_seconds = flush_seconds
        self._rows: dict[TableName, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        self._part = 0
        self._unwritten: dict[str, pa.Buffer] = {}  # parts by file name
        self._outage = Outage(folder)
        self._last_step = 0
        self._last_flush = time.monotonic()

    def start(self, info: Mapping[str, Any]) -> None:
        """Write `run.json` from `info` (see `Run`); removes an earlier attempt's end record.

        Raises OSError where the folder cannot be written: what was never possible is not waited for.
        """
        if self.folder.has("end.json"):
            self.folder.delete("end.json")
        self.folder.write_json("run.json", {"schema": SCHEMA, "attempt": self.attempt, "started": time.time(), **info})

    def step(self, record: Mapping[str, float]) -> None:
        """One step's record: `step` and metrics by name.  Raises KeyError for a name that `METRICS` lacks."""
        self._add("steps", {"time": time.time(), **record})

    def layers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Per-layer rows: `step`, `layer`, `site` and layer metrics by name."""
        for row in rows:
            self._add("layers", row)

    def event(self, step: int, kind: str, /, **detail: Any) -> None:
        """Something that happened: kind (clip, skip, rollback, format_shift, restore, ...) and its particulars."""
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

    def flush(self) -> bool:
        """Write the buffered rows as new parts; whether storage has taken all of them.

        What it refuses stays here for the next flush, tried when the outage says so: training must not wait for it.
        Raises StorageRefused once storage has refused for an outage's limit.
        """
        if not self._outage.due:
            return False
        self._to_parts()
        try:
            self._write_parts(self.folder.patient(0))
        except OSError as error:
            self._outage.refused(error)
            return False
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
                sink = pa.BufferOutputStream()
                pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[table]), sink, compression="zstd")
                self._unwritten[f"{table}/part-{self.attempt:03d}-{self._part:06d}.parquet"] = sink.getvalue()
                self._rows[table] = []
        self._part += 1
        self._last_flush = time.monotonic()

    def _write_parts(self, folder: Folder) -> None:
        while self._unwritten:
            name, content = next(iter(self._unwritten.items()))
            folder.write_bytes(name, content)
            del self._unwritten[name]

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
        write_end(folder, status, verdict, summary)


class NoWriter(RunWriter):
    """Stands in for the writer on a rank whose rows another rank writes: takes everything, touches no storage."""

    def start(self, info: Mapping[str, Any]) -> None:
        """Nothing: the writing rank has said it."""

    def _add(self, table: TableName, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> bool:
        return True

    def end(
        self, status: Status, verdict: Verdict | None, summary: Mapping[str, Any], patience: float = PATIENCE
    ) -> None:
        """Nothing."""


def write_end(folder: Folder, status: Status, verdict: Verdict | None, summary: Mapping[str, Any]) -> None:
    """Write a run's end record (also by the sweep's driver, for a run that it stopped)."""
    record = {"status": status, "verdict": asdict(verdict) if verdict else None, "summary": dict(summary)}
    folder.write_json("end.json", {"schema": SCHEMA, "ended": time.time(), **record})


@dataclass(frozen=True)
class Run:
    """One run as read from its folder.

    `info` is run.json: `run`, `sweep`, `config` (the resolved TrainConfig), `intervention`, `versions`,
    `git_commit`, `host`, `device`, `workers` (processes that train it together), `parameters`, `vocabulary`, `layers`,
    `initial_weights_hash`, `batches_hash`, and `resources`: what a sweep gave the run, {"cpus": cores, "gpus": a share
    or a number}; null where nobody shared out.
    `end` is end.json or None.
    """

    folder: Folder
    info: Mapping[str, Any]
    end: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        return str(self.info.get("run", self.folder.name))

    @property
    def config(self) -> Mapping[str, Any]:
        return self.info["config"]

    @property
    def verdict(self) -> Verdict | None:
        """The collapse verdict of a run that has ended with one."""
        if self.end is None or not self.end.get("verdict"):
            return None
        fields = dict(self.end["verdict"])
        return Verdict(**(fields | {"value": float(fields["value"]), "limit": float(fields["limit"])}))

    @property
    def status(self) -> Status:
        """From end.json; without one `running`, or `killed` where nothing was written for a minute."""
        if self.end is not None:
            return self.end["status"]
        newest = max((info.mtime_ns or 0 for info in (self.folder / "steps").list()), default=0) / 1e9
        return "running" if time.time() - max(newest, float(self.info["started"])) < _SILENT_SECONDS else "killed"

    def table(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        """One table, rows in order of step, each row's latest attempt only; `columns` besides the key columns."""
        return read_table(self.folder, name, columns)


def read_run(folder: Folder) -> Run:
    """The run in a folder.  Raises FileNotFoundError where there is none, ValueError where it cannot be read."""
    info = folder.read_json("run.json")
    if info.get("schema") != SCHEMA:
        raise ValueError(f"{folder / 'run.json'}: schema {info.get('schema')!r}; this version reads schema {SCHEMA}")
    if not isinstance(info.get("config"), dict):
        raise ValueError(f"{folder / 'run.json'}: config={info.get('config')!r}; expected an object of config fields")
    return Run(folder, info, folder.read_json("end.json") if folder.has("end.json") else None)


def list_runs(sweep: Folder) -> tuple[list[Run], dict[str, str]]:
    """The runs of a sweep folder by name, and for each folder that cannot be read a sentence saying why."""
    runs: list[Run] = []
    broken: dict[str, str] = {}
    for info in sweep.list():
        if info.type == pafs.FileType.Directory and not info.base_name.startswith("."):
            folder = sweep / info.base_name
            try:
                runs.append(read_run(folder))
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, OSError) as error:
                broken[info.base_name] = str(error)
    return runs, broken


def list_sweeps(root: Folder) -> list[Folder]:
    """Sweep folders (those with a sweep.json) below a results root, newest first."""
    marked = [
        (root.filesystem.get_file_info(f"{info.path}/sweep.json").mtime_ns or 0, info.base_name)
        for info in root.list()
        if info.type == pafs.FileType.Directory and (root / info.base_name).has("sweep.json")
    ]
    return [root / name for _, name in sorted(marked, reverse=True)]


def read_table(folder: Folder, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
    """A run's table from its parts.  Parts that cannot be read are left out."""
    table, _ = read_parts(folder, name, list_parts(folder, name), columns)
    return latest_rows(table, name)


def list_parts(folder: Folder, name: TableName) -> list[str]:
    """File names of a table's parts in the order they were written.  A part never changes once it is there."""
    return [info.base_name for info in (folder / name).list() if info.base_name.startswith("part-")]


def read_parts(
    folder: Folder, name: TableName, parts: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[pa.Table, list[str]]:
    """All rows of some parts, every attempt, with the key columns; and which of the parts cannot be read."""
    schema = SCHEMAS[name]
    keys = [key for key in ("step", "attempt", "layer", "site") if key in schema.names]
    wanted = schema.names if columns is None else [*keys, *(c for c in columns if c not in keys)]
    tables, broken = [pa.schema([schema.field(c) for c in wanted]).empty_table()], []
    for part in parts:
        try:
            with folder.filesystem.open_input_file(f"{folder.path}/{name}/{part}") as file:
                tables.append(pq.ParquetFile(file).read(columns=wanted, use_threads=False))
        except (pa.ArrowException, OSError):
            broken.append(part)
    return pa.concat_tables(tables, promote_options="default").select(wanted), broken


def latest_rows(table: pa.Table, name: TableName) -> pa.Table:
    """Rows by step; of several with the same key (step; layer and site) the last of the highest attempt."""
    attempts = pc.min_max(table["attempt"]).as_py()
    smallest_advance = 1 if _ROW_KEY[name] == ["step"] else 0
    if attempts["min"] == attempts["max"] and np.all(np.diff(table["step"].to_numpy()) >= smallest_advance):
        return table
    table = table.append_column("_row", pa.array(np.arange(table.num_rows)))
    table = table.sort_by([("step", "ascending"), ("attempt", "ascending"), ("_row", "ascending")])
    if _ROW_KEY[name]:
        table = table.set_column(table.num_columns - 1, "_row", pa.array(np.arange(table.num_rows)))
        last = table.group_by(_ROW_KEY[name]).aggregate([("_row", "max")])["_row_max"]
        table = table.take(last.combine_chunks().sort())
    return table.drop_columns("_row")
