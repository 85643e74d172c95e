"""One run's tables in memory: every part and every column is read once, and only when somebody asks for it.

Parts never change, so following a running sweep costs the new parts alone; Arrow tables are shared between
viewers without copies.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from altgrad.results import SCHEMAS, TableName, latest_rows, list_parts, read_parts
from altgrad.storage import Folder
from dashboard.compaction import MANY_PARTS, compact_file, read_compact, write_compact

_MANY_CHUNKS = 64


@dataclass
class _Held:
    """What has been read of one table: `raw` has all rows of `parts`, `rows` the latest attempt's, in order.

    `compact` is the cache file with the same rows, where there is one.
    """

    raw: pa.Table | None = None
    rows: pa.Table | None = None
    parts: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    compact: Path | None = None
    is_current: bool = False


class RunTables:
    """The tables of one run's folder, read on demand.  Safe for several threads."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held: dict[TableName, _Held] = {name: _Held() for name in SCHEMAS}
        self._lock = threading.Lock()
        self._is_over = False

    def expect_more(self, is_over: bool = False) -> None:
        """Look for new parts at the next read.  `is_over`: the run has ended, so that there will be no others."""
        with self._lock:
            self._is_over = is_over
            for held in self._held.values():
                held.is_current = False

    def read(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        """As `altgrad.results.read_table`: rows in order of step, the latest attempt of each."""
        keys = [column for column in SCHEMAS[name].names if column in ("step", "attempt", "layer", "site")]
        wanted = list(dict.fromkeys([*keys, *(SCHEMAS[name].names if columns is None else columns)]))
        with self._lock:
            held = self._held[name]
            if not held.is_current:
                self._read_new_parts(held, name, wanted)
            self._read_missing_columns(held, name, wanted)
            assert held.raw is not None
            if held.rows is None:
                held.rows = latest_rows(held.raw, name)
            return held.rows.select(wanted)

    def broken_parts(self) -> list[str]:
        """Parts met so far that cannot be read."""
        return [f"{name}/{part}" for name, held in self._held.items() for part in held.broken]

    def _read_new_parts(self, held: _Held, name: TableName, wanted: list[str]) -> None:
        parts = list_parts(self._folder, name)
        known = set(held.parts)
        new = [part for part in parts if part not in known]
        if held.raw is None and self._is_over and len(parts) >= MANY_PARTS:
            rows, held.broken = self._through_cache(held, name, parts, wanted)
        else:
            columns = wanted if held.raw is None else held.raw.column_names
            rows, held.broken = read_parts(self._folder, name, new, columns)
        if new:
            held.compact = held.compact if held.raw is None else None
        if rows.num_rows or held.raw is None:
            held.raw = rows if held.raw is None else pa.concat_tables([held.raw, rows])
            held.rows = None
        if held.raw["step"].num_chunks > _MANY_CHUNKS:
            held.raw = held.raw.combine_chunks()
        held.parts += [part for part in new if part not in held.broken]
        held.is_current = True

    def _through_cache(
        self, held: _Held, name: TableName, parts: list[str], wanted: list[str]
    ) -> tuple[pa.Table, list[str]]:
        """Rows of a finished run's many parts, from the cache or, the first time, into it."""
        held.compact = compact_file(self._folder, name, parts)
        rows = read_compact(held.compact, wanted)
        if rows is not None:
            return rows, []
        whole, broken = read_parts(self._folder, name, parts)
        if broken:
            held.compact = None  # what is damaged has to be said every time
        else:
            write_compact(held.compact, whole)
        return whole.select(wanted), broken

    def _read_missing_columns(self, held: _Held, name: TableName, wanted: list[str]) -> None:
        assert held.raw is not None
        missing = [c for c in wanted if c not in held.raw.column_names]
        if not missing:
            return
        rows = None if held.compact is None else read_compact(held.compact, missing)
        broken: list[str] = []
        if rows is None:
            rows, broken = read_parts(self._folder, name, held.parts, missing)
        if broken:  # a part has been damaged since: start again without it
            held.broken += broken
            held.parts = [part for part in held.parts if part not in broken]
            held.raw, _ = read_parts(self._folder, name, held.parts, [*held.raw.column_names, *missing])
        else:
            for column in missing:
                held.raw = held.raw.append_column(column, rows[column])
        held.rows = None
