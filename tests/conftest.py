"""How `make test` shares two cores between its two processes (pytest-xdist, `--dist loadgroup`).

Tests that start Ray or a server beside it form one group: they run one after another in one process, from the
beginning, since they take the longest.  Every other file is a group of its own, so that its fixtures are made once.
"""

from __future__ import annotations

import os

import pytest

# Before anything imports torch: two processes with two threads each on two cores take many times as long
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_WITH_RAY = {
    f"test_{name}.py"
    for name in ("sweep", "submit", "object_store", "google_store", "full_disk", "steering", "survival")
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = "ray" if item.path.name in _WITH_RAY else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.name not in _WITH_RAY)
