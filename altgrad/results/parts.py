"""A table as parts: their names, how they make a table, and how many become one.

A part is `part-ATTEMPT-NUMBER.parquet` and never changes; ATTEMPT is the attempt's number and, behind a dot, the start
of its owner's random id: two processes that train the same attempt cannot write over each other.  Parts FIRST to LAST
of an attempt are merged into `part-ATTEMPT-FIRST-LAST.parquet`, which is written before they are deleted.  A part whose
numbers lie within another one's is not read: so a reader finds every row once whatever has been deleted so far, also
after a crash in between.  Between a reader's look at the folder and its opening of a file the file may go: then it
looks again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from altgrad.results.part_file import PartWriter, encoded, read_part
from altgrad.results.schema import KEY_COLUMNS, ROW_KEY, SCHEMAS, TableName
from altgrad.storage.folder import Folder

T = TypeVar("T")
_NAME = re.compile(r"part-(\d+(?:\.[0-9a-f]+)?)-(\d+)(?:-(\d+))?\.parquet")
_PAUSES = (0.0, 0.1, 0.5, 2.0)  # before looking again: a network file system may show what is gone for a while
_READ_TOGETHER = 64  # parts in memory at once while merging
_DELETERS = 8


class _Range(NamedTuple):
    attempt: str
    first: int
    last: int

    def covers(self, other: _Range) -> bool:
        return self.attempt == other.attempt and self.first <= other.first and other.last <= self.last


def part_name(attempt: int, number: int, owner: str = "") -> str:
    return f"part-{attempt:03d}{owner and f'.{owner}'}-{number:06d}.parquet"


def _range(name: str) -> _Range | None:
    """What a part's name says; None for a file that was named otherwise."""
    match = _NAME.fullmatch(name)
    return None if match is None else _Range(match[1], int(match[2]), int(match[3] or match[2]))


def list_parts(folder: Folder, name: TableName) -> list[str]:
    """File names of a table's parts in the order they were written, without those that were merged into another."""
    return _uncovered(info.base_name for info in (folder / name).list())


def _uncovered(names: Iterable[str]) -> list[str]:
    found = sorted(name for name in names if name.startswith("part-"))
    merged = [(name, range_) for name in found if (range_ := _range(name)) is not None and name.count("-") == 3]
    if not merged:
        return found
    kept = []
    for name in found:
        own = _range(name)
        if own is None or not any(range_.covers(own) and other != name for other, range_ in merged):
            kept.append(name)
    return kept


def read_rows(
    folder: Folder, name: TableName, columns: Sequence[str] | None = None, newest: int | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """Latest rows of a table (or of its `newest` parts) with the key columns; and why parts cannot be read, by part."""
    wanted = wanted_columns(name, columns)

    def look() -> dict[str, pa.Table | str]:
        parts = list_parts(folder, name)
        return {part: read_part(folder, name, part, wanted) for part in (parts if newest is None else parts[-newest:])}

    tables = insist(look)
    read = [table for table in tables.values() if not isinstance(table, str)]
    broken = {part: reason for part, reason in tables.items() if isinstance(reason, str)}
    return latest_rows(joined(name, wanted, read), name), broken


def read_table(folder: Folder, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
    """Latest rows of a table with the key columns.  Parts that cannot be read are left out."""
    return read_rows(folder, name, columns)[0]


def insist(look: Callable[[], T]) -> T:
    """Look at a folder and read it; again where a part went in between.  Raises FileNotFoundError if it goes on so."""
    for pause in _PAUSES:
        with suppress(FileNotFoundError):
            return look()
        time.sleep(pause)
    return look()


def wanted_columns(name: TableName, columns: Sequence[str] | None) -> list[str]:
    """The key columns and those asked for; all where none are named."""
    return list(dict.fromkeys([*KEY_COLUMNS[name], *(SCHEMAS[name].names if columns is None else columns)]))


def joined(name: TableName, columns: Sequence[str], tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of the same columns below each other, in one piece; empty where there are none."""
    if len(tables) == 1:
        return tables[0]
    if not tables:
        return pa.schema([SCHEMAS[name].field(column) for column in columns]).empty_table()
    return pa.concat_tables(tables).combine_chunks()


def latest_rows(table: pa.Table, name: TableName) -> pa.Table:
    """Rows by step; of several with the same key (step; layer and site) the last of the highest attempt."""
    if not table.num_rows:
        return table
    attempts, advances = table["attempt"].to_numpy(), np.diff(table["step"].to_numpy())
    smallest_advance = 1 if ROW_KEY[name] == ["step"] else 0
    if (attempts == attempts[0]).all() and (advances >= smallest_advance).all():
        return table
    table = table.append_column("_row", pa.array(np.arange(table.num_rows)))
    table = table.sort_by([("step", "ascending"), ("attempt", "ascending"), ("_row", "ascending")])
    if ROW_KEY[name]:
        table = table.set_column(table.num_columns - 1, "_row", pa.array(np.arange(table.num_rows)))
        last = table.group_by(ROW_KEY[name]).aggregate([("_row", "max")])["_row_max"]
        table = table.take(last.combine_chunks().sort())
    return table.drop_columns("_row")


def merge_parts(folder: Folder, name: TableName, known: Mapping[str, pa.Table]) -> None:
    """Make one part of each attempt's parts, and delete what is left of earlier merges.

    `known`: rows of parts that need not be read again.  An attempt with a part that cannot be read stays as it is.
    Raises OSError where storage refuses: what is there then says the same as before.
    """
    there = [info.base_name for info in (folder / name).list() if info.base_name.startswith("part-")]
    current = _uncovered(there)
    by_attempt: dict[str, list[str]] = {}
    for part in current:
        if (range_ := _range(part)) is not None:
            by_attempt.setdefault(range_.attempt, []).append(part)
    replaced = [part for part in there if part not in current]
    for parts in by_attempt.values():
        if len(parts) > 1 and merge(folder, name, parts, known):
            replaced += parts
    _delete(folder / name, replaced)


def merge_newest(folder: Folder, name: TableName, known: Mapping[str, pa.Table]) -> None:
    """Make one part of the parts in `known`, which were written one after another.  Raises OSError."""
    if merge(folder, name, list(known), known):
        _delete(folder / name, list(known))


def replace_rows(folder: Folder, name: TableName, table: pa.Table) -> None:
    """Make `table` the rows of a run that is over.  A reader finds the old ones or the new ones.  Raises OSError."""
    parts = [info.base_name for info in (folder / name).list() if info.base_name.startswith("part-")]
    ranges = [range_ for part in parts if (range_ := _range(part)) is not None]
    attempt = max(range_.attempt for range_ in ranges)
    last = max(range_.last for range_ in ranges if range_.attempt == attempt) + 1
    whole = f"part-{attempt}-{0:06d}-{last:06d}.parquet"
    folder.write_bytes(f"{name}/{whole}", encoded(name, table), durable=True)  # what it replaces goes
    _delete(folder / name, parts)


def merge(folder: Folder, name: TableName, parts: Sequence[str], known: Mapping[str, pa.Table]) -> bool:
    """Write the part that takes the place of neighbouring ones; False where one of them cannot be read."""
    ranges = [range_ for part in parts if (range_ := _range(part)) is not None]
    columns, merged = SCHEMAS[name].names, PartWriter(name)
    for begin in range(0, len(parts), _READ_TOGETHER):
        tables = []
        for part in parts[begin : begin + _READ_TOGETHER]:
            table = known[part] if part in known else read_part(folder, name, part, columns)
            if isinstance(table, str):
                return False
            tables.append(table)
        merged.add(joined(name, columns, tables))
    whole = f"part-{ranges[0].attempt}-{ranges[0].first:06d}-{ranges[-1].last:06d}.parquet"
    folder.write_bytes(f"{name}/{whole}", merged.content(), durable=True)  # what it replaces may be
    return True


def _delete(folder: Folder, parts: Sequence[str]) -> None:
    """Delete parts, many at a time: an object store answers slowly."""

    def delete(part: str) -> None:
        with suppress(FileNotFoundError):
            folder.delete(part)

    if parts:
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(delete, parts))
