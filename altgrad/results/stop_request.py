"""Requests to stop a run or a sweep: a file `stop.json` in its folder, written on any machine that sees the storage.

In the folder of a run it ends the run at its next report, with the final status `stopped`.  In the folder of a sweep it
ends every run of the sweep that has not ended, including those that have not started.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from altgrad.results import ended_as
from altgrad.storage.folder import Folder

REQUEST = "stop.json"


def request_stop(folder: Folder, reason: str = "") -> str:
    """Ask the run or sweep in a folder to stop.  Returns "run" or "sweep".

    Raises FileNotFoundError if the folder contains neither, ValueError if the run has ended.
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
    """The request to stop a run, from the run's folder or its sweep's; None if there is none.

    An empty or malformed file is a request without a reason.
    """
    for folder in (run, *([] if sweep is None else [sweep])):
        if folder.has(REQUEST):
            try:
                return folder.read_json(REQUEST)
            except ValueError:
                return {}
    return None


def stop_sentence(request: Mapping[str, Any]) -> str:
    """The reason for a run's end, as its end record states it."""
    reason = request.get("reason")
    return f"stop requested: {reason}" if reason and isinstance(reason, str) else "stop requested"
