"""What commands share that read the folder of a run or a sweep: the check that it is one, and a console for tables."""

from __future__ import annotations

from rich.console import Console

from altgrad.storage.folder import Folder

_FILE_WIDTH = 100  # columns of a table at least, if it is not printed to a terminal


def wide_console(columns: int = _FILE_WIDTH) -> Console:
    """A console on which a table has at least so many columns if the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, columns)
    return console


def expect(folder: Folder, *records: str) -> str:
    """The first of these records that a folder contains.  Raises FileNotFoundError with a suggestion if it has none."""
    for record in records:
        if folder.has(record):
            return record
    wanted = " or ".join(f"a {record.removesuffix('.json')} folder" for record in records)
    if folder.has("run.json"):
        around = f", such as {folder.parent}" if folder.parent.has("sweep.json") else "; this run is of no sweep"
        raise FileNotFoundError(f"{folder}: the folder of a run; give {wanted}{around}")
    sweeps = [info.base_name for info in folder.list() if (folder / info.base_name).has("sweep.json")]
    there = f", such as {folder / sweeps[0]}" if sweeps else ""
    missing = " nor ".join(records) if len(records) > 1 else f"no {records[0]}"
    raise FileNotFoundError(f"{folder}: {'neither ' if len(records) > 1 else ''}{missing} in it; give {wanted}{there}")
