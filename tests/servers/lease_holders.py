"""Those who hold a folder: another process, or one on another machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from altgrad.results import lease
from altgrad.storage.folder import Folder

HOLDER = """
import sys, time
from altgrad.results import Lease
from altgrad.storage.folder import Folder
Lease.take(Folder.at(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Folder, age: float = 0.0, **fields: Any) -> None:
    """A lease that a process on another machine renewed so many seconds ago."""
    now = lease.time.time() - age
    told = {"owner": "a" * 32, "host": "other", "pid": 1, "process": "boot 7", "since": now - 60, "renewed": now}
    folder.write_json("lease.json", told | {"pace": 10.0, "group": None} | fields)
    os.utime(Path(folder.path) / "lease.json", (now, now))
