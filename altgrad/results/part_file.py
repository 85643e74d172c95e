"""One part as a Parquet file with checksums, so that a changed bit is noticed when the part is read.

Parquet has a checksum for each page of values (CRC-32, verified on reading), but none for its footer, which holds the
places and types of the pages.  So the footer of a part has its own checksum in the metadata entry `altgrad_seal`.  The
writer writes that entry as zeros, computes the CRC-32 of the whole footer, and replaces the zeros by it; a reader puts
the zeros back and computes the CRC-32 again.  Other Parquet readers ignore the entry.  A part without it, written by an
older version, is read without this check.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altgrad.results.schema import KEY_COLUMNS, SCHEMAS, TableName
from altgrad.storage.folder import Folder

_MAGIC = b"PAR1"
_SEAL, _UNSEALED = b"altgrad_seal", b"crc32:00000000"
_TAIL = 1 << 16  # bytes at the end that are read first: usually the whole footer, in one request
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError)

# Measurements hardly ever repeat, so a dictionary of them makes files larger and slower; byte-stream split makes them
# smaller and faster.
_ENCODING: Mapping[TableName, Mapping[str, Any]] = {
    name: {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if field.type == pa.string()],
        "use_byte_stream_split": [field.name for field in schema if field.type == pa.float64()],
        "write_page_checksum": True,
    }
    for name, schema in SCHEMAS.items()
}


class PartWriter:
    """Encodes a part from one or more tables."""

    def __init__(self, name: TableName) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, SCHEMAS[name], **_ENCODING[name])

    def add(self, table: pa.Table) -> None:
        """Append the rows of a table in the part's schema."""
        self._writer.write_table(table)

    def content(self) -> bytes:
        """The bytes of the part with the checksum of its footer.  No table can be added afterwards."""
        self._writer.add_key_value_metadata({_SEAL.decode(): _UNSEALED.decode()})
        self._writer.close()
        whole = bytearray(self._sink.getvalue())
        begin = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        at = whole.index(_UNSEALED, whole.index(_SEAL, begin))
        whole[at : at + len(_UNSEALED)] = _seal_of(whole[begin:])
        return bytes(whole)


def encoded(name: TableName, table: pa.Table) -> bytes:
    """The bytes of a part that holds one table."""
    part = PartWriter(name)
    part.add(table)
    return part.content()


def read_part(folder: Folder, name: TableName, part: str, columns: Sequence[str]) -> pa.Table | str:
    """Some columns of a part with the rows of every attempt, or a sentence why the part cannot be read.

    A column that the part lacks is null.  Raises FileNotFoundError if the part was deleted after the folder was listed,
    because its rows were merged into another part.
    """
    try:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}/{part}") as file:
            opened = pq.ParquetFile(file, metadata=_footer(file), page_checksum_verification=True)
            found = opened.schema_arrow  # converted anew at each access
            _check_types(found, name)
            table = opened.read(columns=sorted(set(columns) & set(found.names)), use_threads=False)
        return _as_declared(table, name, columns)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE):
            raise FileNotFoundError(f"{folder / name / part}: gone") from error
        return " ".join(str(error).split()) or type(error).__name__


def _footer(file: pa.NativeFile) -> pq.FileMetaData:
    """The footer of a part.  Raises ValueError if it is incomplete or differs from its checksum."""
    size = file.size()
    tail = file.read_at(min(size, _TAIL), max(0, size - _TAIL))
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise ValueError("cut off: no Parquet footer at its end")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length + len(_MAGIC) > size:
        raise ValueError("its Parquet footer is damaged: longer than the file")
    if length > len(tail):
        tail = file.read_at(length, size - length)
    footer = tail[-length:]
    at = footer.find(_SEAL)
    if at >= 0:
        begin = footer.find(b"crc32:", at)
        seal = footer[begin : begin + len(_UNSEALED)]
        if begin < 0 or seal != _seal_of(footer[:begin] + _UNSEALED + footer[begin + len(_UNSEALED) :]):
            raise ValueError("its Parquet footer is damaged: the checksum differs")
    return pq.read_metadata(pa.BufferReader(footer))


def _seal_of(footer: bytes | bytearray) -> bytes:
    return b"crc32:%08x" % zlib.crc32(footer)


def _check_types(found: pa.Schema, name: TableName) -> None:
    """Raises ValueError if any column of a part has a wrong type, also if that column was not asked for."""
    if found.equals(SCHEMAS[name]):
        return
    for column in KEY_COLUMNS[name]:
        if column not in found.names:
            raise ValueError(f"it has no column {column}")
    for declared in SCHEMAS[name]:
        for at in found.get_all_field_indices(declared.name):
            if found.field(at).type != declared.type and not _widens(found.field(at).type, declared.type):
                raise ValueError(f"column {declared.name} is {found.field(at).type}, expected {declared.type}")
    if len(set(found.names)) < len(found.names):
        raise ValueError("it has two columns of the same name")


def _as_declared(table: pa.Table, name: TableName, columns: Sequence[str]) -> pa.Table:
    """The table with the declared types; a missing column is null.  Raises ValueError for a null key."""
    arrays = []
    for column in columns:
        declared = SCHEMAS[name].field(column).type
        if column not in table.column_names:
            arrays.append(pa.chunked_array([pa.nulls(table.num_rows, declared)]))
            continue
        found = table[column] if table[column].type == declared else table[column].cast(declared)
        if column in KEY_COLUMNS[name] and found.null_count:
            raise ValueError(f"column {column} has rows without a value")
        arrays.append(found)
    return pa.table(arrays, names=list(columns))


def _widens(found: pa.DataType, declared: pa.DataType) -> bool:
    """Whether values of type `found` can be cast to `declared`: an integer to a float, a large string to a string."""
    kinds = pa.types
    if kinds.is_null(found):
        return True
    if kinds.is_list(declared):
        return (kinds.is_list(found) or kinds.is_large_list(found)) and (
            found.value_type == declared.value_type or _widens(found.value_type, declared.value_type)
        )
    if kinds.is_string(declared):
        return kinds.is_large_string(found) or (kinds.is_dictionary(found) and kinds.is_string(found.value_type))
    if kinds.is_floating(declared):
        return kinds.is_floating(found) or kinds.is_integer(found)
    return kinds.is_integer(declared) and kinds.is_integer(found)
