"""How `make test` shares two cores between its two processes (pytest-xdist).

Tests that start Ray or a server beside it run one after another in one process, from the beginning, since they take
the longest.  Of every other file the tests stay together, so that its fixtures are made once.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import pytest

# Before anything imports torch: two processes with two threads each on two cores take many times as long
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_WITH_RAY = {
    f"test_{name}.py"
    for name in (
        "sweep",
        "ray_watch",
        "submit",
        "object_store",
        "google_store",
        "full_disk",
        "steering",
        "survival",
        "wheel",
    )
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _WITH_RAY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class OneRay(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            """What stays in one process: the tests with Ray, else those of a file."""
            file = nodeid.split("::")[0]
            return "ray" if PurePosixPath(file).name in _WITH_RAY else file

    return OneRay(config, log)
