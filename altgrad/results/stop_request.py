"""Requests to a run or a sweep from outside: a file in its folder, from any machine that sees the storage.

`stop.json` ends a run at its next report with status `stopped`, for good; in a sweep's folder it ends every run of
the sweep that has not ended, those that wait included.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from altgrad.results import ended_as
from altgrad.storage.folder import Folder

REQUEST = "stop.json"


def request_stop(folder: Folder, reason: str = "") -> str:
    """Ask the run or sweep in a folder to stop; which of the two it is.

    Raises FileNotFoundError where neither is there, ValueError where the run has ended.
    """
    if folder.has("run.json"):
        status = ended_as(folder)
        if status is not None:
            raise ValueError(f"{folder}: the run has ended: {status}")
        what = "run"
    elif folder.has("sweep.json"):
        what = "sweep"
    else:
        raise FileNotFoundError(f"{folder}: neither run.json nor sweep.json in it; give a run folder or a sweep folder")
    folder.write_json(REQUEST, {"requested": time.time(), "reason": reason})
    return what


def stop_request(run: Folder, sweep: Folder | None = None) -> Mapping[str, Any] | None:
    """The request to stop a run, its own or its sweep's; None where there is none.

    Whatever the file holds it is a request, only perhaps without a reason: an empty one is one too.
    """
    for folder in (run, *([] if sweep is None else [sweep])):
        if folder.has(REQUEST):
            try:
                return folder.read_json(REQUEST)
            except ValueError:
                return {}
    return None


def stop_sentence(request: Mapping[str, Any]) -> str:
    """Why a run ended, for its end record."""
    reason = request.get("reason")
    return f"stop requested: {reason}" if reason and isinstance(reason, str) else "stop requested"
