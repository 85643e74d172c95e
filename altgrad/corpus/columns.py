"""Text in a column of JSON lines or Parquet files: the texts of all rows, one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from altgrad.config.train_config import ConfigError
from altgrad.text.error_hints import cut, did_you_mean, shown

SUFFIXES = (".jsonl", ".ndjson", ".parquet")
_BETWEEN = b"\n"  # two rows


def read_column(file: Path, column: str, where: str) -> bytes:
    """The texts of a column, joined by line feeds, as UTF-8; half of a surrogate pair, as JSON may have it, is a `?`.

    `where`: begins an error.

    Raises ConfigError if the file cannot be read, or has no such column of texts.
    """
    try:
        rows = _parquet(file, column, where) if file.suffix.lower() == ".parquet" else _lines(file, column, where)
    except OSError as error:
        raise ConfigError(f"{where}: {file}: cannot be read: {error.strerror or error}") from error
    return _BETWEEN.join(text.encode(errors="replace") for text in rows)


def _lines(file: Path, column: str, where: str) -> list[str]:
    texts = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{where}: {file}: line {number} is no JSON ({cut(str(error))})") from error
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                there = list(row) if isinstance(row, dict) else []
                raise ConfigError(f"{where}: {file}: line {number} {_lacks(column, there)}")
            texts.append(row[column])
    return texts


def _parquet(file: Path, column: str, where: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        names = opened.schema_arrow.names
        if column not in names:
            raise ConfigError(f"{where}: {file}: {_lacks(column, names)}")
        kind: Any = opened.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ConfigError(f"{where}: {file}: the column {column!r} holds {kind}, no texts; give text_column")
        return [text for text in opened.read(columns=[column])[column].to_pylist() if text is not None]
    except pa.ArrowException as error:
        raise ConfigError(f"{where}: {file}: is no whole Parquet file ({cut(str(error))})") from error


def _lacks(column: str, names: list[str]) -> str:
    there = f"there: {cut(', '.join(names))}" if names else "it is no object"
    return f"has no text {shown(column)}; {there}; text_column chooses one{did_you_mean(column, names)}"
