"""The check that every path passes, whether it comes from a command line, a config file or a caller."""

from __future__ import annotations

import os

from altgrad.text.error_hints import shown

_LONGEST_NAME = 255  # bytes of a file or folder name


def check_path(path: str) -> None:
    """Raises ValueError for an empty path, the root of the filesystem, a NUL character, or a name over 255 bytes."""
    if not path.strip():
        raise ValueError(f"{shown(path)} is no path; write . for the current folder")
    if "\0" in path:
        raise ValueError(f"{shown(path)}: no path has a NUL character")
    if "://" not in path and any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.split("/")):
        raise ValueError(f"{shown(path)}: a name of more than {_LONGEST_NAME} bytes, which no file system takes")
    if "://" not in path and not os.path.normpath(path).strip("/"):
        raise ValueError(f"{shown(path)}: the root of the filesystem; give a folder in it")
