"""The tables of one run in memory: every column of every part is read once, when a page first needs it.

Parts never change, so only new parts are read while a sweep runs.  Viewers share the Arrow tables without copies.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from altgrad.results import TableName
from altgrad.results.part_file import read_part
from altgrad.results.parts import insist, joined, latest_rows, list_parts, wanted_columns
from altgrad.results.reading.run import missing_steps
from altgrad.results.schema import SCHEMAS
from altgrad.storage.folder import Folder


@dataclass
class _Held:
    """One table in memory.  `parts`: some columns of each part, or why it cannot be read; `rows`: their joined rows."""

    parts: dict[str, pa.Table | str] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    rows: pa.Table | None = None
    is_current: bool = False


class RunTables:
    """The tables of one run's folder, read on demand.  Safe for several threads."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held: dict[TableName, _Held] = {name: _Held() for name in SCHEMAS}
        self._lock = threading.Lock()
        self._missing: tuple[pa.Table, int, list[str]] | None = None  # of which rows and start, and what was found

    def expect_more(self) -> None:
        """Let the next read look for new parts."""
        with self._lock:
            for held in self._held.values():
                held.is_current = False

    def read(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        """As `altgrad.results.read_table`: rows in order of step, with the latest attempt of each step."""
        wanted = wanted_columns(name, columns)
        with self._lock:
            held = self._held[name]
            missing = [column for column in wanted if column not in held.columns]
            if missing or not held.is_current:
                self._catch_up(held, name, missing)
            assert held.rows is not None
            return held.rows.select(wanted)

    def holds(self, name: TableName, columns: Sequence[str]) -> bool:
        """Whether these columns are in memory, so that `read` opens no file."""
        held = self._held[name]
        return held.is_current and set(columns) <= set(held.columns)

    def broken_parts(self) -> dict[str, str]:
        """Part -> reason, for the parts read so far that cannot be read."""
        held = [(name, part, rows) for name, table in self._held.items() for part, rows in table.parts.items()]
        return {f"{name}/{part}": rows for name, part, rows in held if isinstance(rows, str)}

    def missing_steps(self, begins_after: int) -> list[str]:
        """See `missing_steps`; none as long as the steps table was not read."""
        rows = self._held["steps"].rows
        if rows is None or self.broken_parts():
            return []
        if self._missing is None or self._missing[0] is not rows or self._missing[1] != begins_after:
            self._missing = (rows, begins_after, missing_steps(rows, begins_after))
        return self._missing[2]

    def _catch_up(self, held: _Held, name: TableName, missing: list[str]) -> None:
        """Read all held columns of new parts, and the missing columns of known parts."""
        columns = [*held.columns, *missing]

        def look() -> dict[str, pa.Table | str]:
            return {part: self._part(held, name, part, missing) for part in list_parts(self._folder, name)}

        parts = insist(look)
        unread = any(isinstance(rows, str) for rows in held.parts.values())
        if held.rows is None or missing or parts.keys() != held.parts.keys() or unread:
            read = [rows for rows in parts.values() if not isinstance(rows, str)]
            held.rows = latest_rows(joined(name, columns, read), name)
        held.parts, held.columns, held.is_current = parts, columns, True

    def _part(self, held: _Held, name: TableName, part: str, missing: list[str]) -> pa.Table | str:
        known = held.parts.get(part)
        if known is None or isinstance(known, str):
            return read_part(self._folder, name, part, [*held.columns, *missing])
        if missing:
            more = read_part(self._folder, name, part, missing)
            if isinstance(more, str):  # damaged since
                return more
            for column in missing:
                known = known.append_column(column, more[column])
        return known
