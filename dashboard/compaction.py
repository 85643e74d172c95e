"""Finished runs whose tables lie in many parts are read from one file in the user's cache the next time.

A run writes a part every two seconds: a sweep of a few hundred long runs is a hundred thousand files, which take
minutes to open.  Results stay as they are; the cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from altgrad.results import TableName
from altgrad.storage import Folder

MANY_PARTS = 16
_KEPT_SECONDS = 30 * 86_400.0


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/altgrad` or `~/.cache/altgrad`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "altgrad"


def compact_file(folder: Folder, name: TableName, parts: Sequence[str]) -> Path:
    """Where the rows of these parts of a run's table would be; another set of parts has another file."""
    key = hashlib.sha256("\n".join([str(folder), name, *parts]).encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.parquet"


def read_compact(file: Path, columns: Sequence[str]) -> pa.Table | None:
    """Columns of a compact file; None where there is none that can be read."""
    try:
        table = pq.ParquetFile(file).read(columns=list(columns), use_threads=False)
        os.utime(file)
    except (OSError, pa.ArrowException):
        return None
    return table.select(columns) if set(columns) <= set(table.column_names) else None


def write_compact(file: Path, table: pa.Table) -> None:
    """Write a compact file whole or not at all; a cache that cannot be written is done without."""
    temporary = file.with_name(f".{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def forget_unused() -> None:
    """Delete compact files that nobody has read for a month."""
    for file in cache_folder().glob("*.parquet"):
        try:
            if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
                file.unlink()
        except OSError:
            continue
