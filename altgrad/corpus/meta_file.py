"""nanoGPT's meta.pkl, which holds the size of a vocabulary: read without running what a pickle may ask to run.

A pickle is a program: it may import and call any function.  This reader knows dicts, lists, tuples, texts, bytes and
numbers alone, which is all that nanoGPT writes, and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from altgrad.config.train_config import ConfigError

NAME = "meta.pkl"
_LARGEST = 1 << 26  # bytes


class _PlainValues(pickle.Unpickler):
    """An unpickler that makes no object of any class."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for a persistent object")


def vocabulary_in(file: Path, where: str) -> int | None:
    """`vocab_size` in a meta.pkl; None if there is no such file.  `where`: begins an error.

    Raises ConfigError for a file that holds anything but plain values, or no `vocab_size`.
    """
    if not file.is_file():
        return None
    advice = f"a {NAME} of nanoGPT is a dict of plain values with vocab_size; remove the file to go by the ids"
    if file.stat().st_size > _LARGEST:
        raise ConfigError(f"{where}: {file}: is larger than {_LARGEST:,} bytes; {advice}")
    try:
        found = _PlainValues(io.BytesIO(file.read_bytes())).load()
        size = found["vocab_size"]
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where}: {file}: cannot be taken ({reason}); {advice}") from error
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"{where}: {file}: vocab_size is {size!r}; {advice}")
    return size
