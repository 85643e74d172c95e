"""A table is stored as parts: their names, how a table is read from them, and how parts are merged.

A part is `part-ATTEMPT-NUMBER.parquet` and never changes.  ATTEMPT is the number of the attempt and, after a dot, the
first characters of its owner's random id, so that two processes that train the same attempt cannot overwrite each
other's parts.  Parts FIRST to LAST of an attempt are merged into `part-ATTEMPT-FIRST-LAST.parquet`, which is written
before they are deleted.  A part whose numbers lie within those of another part is not read.  For example, after a crash
in the middle of the deletions a folder may contain

    part-000.1f3a9c2e-000000-000063.parquet   read: the rows of parts 0 to 63
    part-000.1f3a9c2e-000062.parquet          not read: 62 lies within 0 to 63
    part-000.1f3a9c2e-000063.parquet          not read
    part-000.1f3a9c2e-000064.parquet          read

so a reader finds every row exactly once, whichever files have been deleted so far.  If a file is deleted after a reader
has listed the folder and before it opens the file, the reader lists the folder again.
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
_PAUSES = (0.0, 0.1, 0.5, 2.0)  # seconds before listing again: network file systems show deleted files for a while
_READ_TOGETHER = 64  # parts in memory at once while merging
_DELETERS = 8


class _Range(NamedTuple):
    attempt: str
    first: int
    last: int

    def covers(self, other: _Range) -> bool:
        return self.attempt == other.attempt and self.first <= other.first and other.last <= self.last


def part_name(attempt: int, number: int, owner: str = "") -> str:
    """The file name of a part, such as `part-000-000012.parquet`; with an owner `part-000.OWNER-000012.parquet`."""
    return f"part-{attempt:03d}{owner and f'.{owner}'}-{number:06d}.parquet"


def _range(name: str) -> _Range | None:
    """The attempt and the numbers in the name of a part; None for a file with another kind of name."""
    match = _NAME.fullmatch(name)
    return None if match is None else _Range(match[1], int(match[2]), int(match[3] or match[2]))


def list_parts(folder: Folder, name: TableName) -> list[str]:
    """File names of a table's parts in the order of writing, without those whose rows were merged into another part."""
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
    """The rows of a table with its key columns, and part -> reason for each part that cannot be read.

    `columns`: all if None.  `newest`: read so many of the last parts only.  If several rows have the same key, the row
    of the latest attempt counts.
    """
    wanted = wanted_columns(name, columns)

    def look() -> dict[str, pa.Table | str]:
        parts = list_parts(folder, name)
        return {part: read_part(folder, name, part, wanted) for part in (parts if newest is None else parts[-newest:])}

    tables = insist(look)
    read = [table for table in tables.values() if not isinstance(table, str)]
    broken = {part: reason for part, reason in tables.items() if isinstance(reason, str)}
    return latest_rows(joined(name, wanted, read), name), broken


def read_table(folder: Folder, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a table with its key columns, as `read_rows`; parts that cannot be read are left out."""
    return read_rows(folder, name, columns)[0]


def insist(look: Callable[[], T]) -> T:
    """Call `look`, which lists a folder and reads its files, again while a listed file is missing, 5 times at most.

    Raises FileNotFoundError if a file is still missing then.
    """
    for pause in _PAUSES:
        with suppress(FileNotFoundError):
            return look()
        time.sleep(pause)
    return look()


def wanted_columns(name: TableName, columns: Sequence[str] | None) -> list[str]:
    """The key columns and `columns`; all columns of the table if `columns` is None."""
    return list(dict.fromkeys([*KEY_COLUMNS[name], *(SCHEMAS[name].names if columns is None else columns)]))


def joined(name: TableName, columns: Sequence[str], tables: Sequence[pa.Table]) -> pa.Table:
    """The concatenation of tables with these columns, in one chunk; an empty table if there are none."""
    if len(tables) == 1:
        return tables[0]
    if not tables:
        return pa.schema([SCHEMAS[name].field(column) for column in columns]).empty_table()
    return pa.concat_tables(tables).combine_chunks()


def latest_rows(table: pa.Table, name: TableName) -> pa.Table:
    """Rows in order of step; of several rows with the same key, the last row of the highest attempt is kept.

    The key is the step or, in the tables of layers and tensors, step, layer and site; events have none, so all stay.
    """
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
    """Merge the parts of each attempt into one, and delete parts that earlier merges have left over.

    `known`: the rows of parts that need not be read again.  An attempt with an unreadable part is not merged.
    Raises OSError if storage refuses; the parts that exist then still have the same rows.
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
    """Merge the parts in `known`, which were written one after another, into one part.  Raises OSError."""
    if merge(folder, name, list(known), known):
        _delete(folder / name, list(known))


def replace_rows(folder: Folder, name: TableName, table: pa.Table) -> None:
    """Replace all rows of a table, in a run that has ended, by `table`.

    At any time a reader finds either the old rows or the new ones, never both.  Raises OSError.
    """
    parts = [info.base_name for info in (folder / name).list() if info.base_name.startswith("part-")]
    ranges = [range_ for part in parts if (range_ := _range(part)) is not None]
    attempt = max(range_.attempt for range_ in ranges)
    last = max(range_.last for range_ in ranges if range_.attempt == attempt) + 1
    whole = f"part-{attempt}-{0:06d}-{last:06d}.parquet"
    folder.write_bytes(f"{name}/{whole}", encoded(name, table), durable=True)  # since the old parts are deleted
    _delete(folder / name, parts)


def merge(folder: Folder, name: TableName, parts: Sequence[str], known: Mapping[str, pa.Table]) -> bool:
    """Write one part with the rows of consecutive parts.  Returns False, and writes nothing, if one is unreadable."""
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
    folder.write_bytes(f"{name}/{whole}", merged.content(), durable=True)  # since the old parts are deleted
    return True


def _delete(folder: Folder, parts: Sequence[str]) -> None:
    """Delete parts, 8 at a time because an object store answers slowly."""

    def delete(part: str) -> None:
        with suppress(FileNotFoundError):
            folder.delete(part)

    if parts:
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(delete, parts))
