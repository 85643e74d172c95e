"""A sweep in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from altgrad.results import read_run
from altgrad.storage.folder import Folder
from tests.servers.polling import PATIENCE
from tests.support.runs.small_runs import SWEPT


def write_configs(folder: Path, configs: Mapping[str, Mapping[str, Any]], **common: Any) -> None:
    """The configs of a sweep: `SWEPT`, with fields in common and of their own."""
    folder.mkdir(parents=True)
    for name, fields in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**SWEPT, **common, **fields}))


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """A sweep in its own session, started in `folder` with a home of its own."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
    environment = keep | {"HOME": str(folder / "home"), "PYTHONPATH": ""}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def attempt(run: Path) -> int:
    return int(read_run(Folder.at(run)).info["attempt"]) if (run / "run.json").exists() else -1


def checkpoints(run: Path) -> set[str]:
    return {file.name for file in (run / "checkpoints").glob("*") if not file.name.startswith(".")}


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a sweep has started, Ray's workers included."""
    return psutil.Process(process.pid).children(recursive=True)


def processes_of(home: Path) -> list[psutil.Process]:
    """All processes that live in this home, whoever their parent is."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def complete(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    output, _ = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, output)
