"""A reader that polls a results folder while others write it, as a dashboard would; and waiting for what it shows."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from altgrad.results import list_runs
from altgrad.storage.folder import Folder

PATIENCE = 900.0  # seconds on a busy machine
SOON = 240.0  # what has a time limit of its own of some seconds; without it, it would wait for minutes


@dataclass
class Poller:
    """What reading all the time found: how often, and everything that was not as it should be."""

    folder: Folder
    reads: int = 0
    problems: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Every run must be readable, its steps without a gap from the first."""
        runs, broken = list_runs(self.folder)
        self.problems += [f"{name}: {reason}" for name, reason in broken.items()]
        for run in runs:
            steps = run.table("steps", ["loss"])["step"].to_pylist()
            if steps != list(range(1, len(steps) + 1)):
                self.problems.append(f"{run.name}: steps {steps[:3]}...{steps[-3:]}")
        self.reads += 1


@contextmanager
def polling(poller: Poller) -> Iterator[Poller]:
    """Poll from a thread for the length of the context."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.2):
            try:
                poller.read()
            except OSError as error:
                poller.problems.append(repr(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield poller
    finally:
        over.set()
        thread.join()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for what another thread or process of the test does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def wait_for_content(file: Path, content: bytes) -> None:
    """Wait until a file that another process writes has this in it."""
    wait_for(lambda: content in file.read_bytes())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something in the results folder while the sweep runs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            raise AssertionError(f"waited in vain:\n{process.communicate()[0]}")
        time.sleep(0.1)
