"""How `make test` shares two cores between its two processes (pytest-xdist), and what the marks of tests are held to.

Tests that start Ray run one after another in one process, from the beginning, since they take the longest.  Of every
other file the tests stay together, so that its fixtures are made once.  Tests that compile come last and each by
itself: they take seconds to a minute, so that both processes have work until the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Before anything imports torch: two processes with two threads each on two cores take many times as long
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_GRAPHS = pytest.StashKey[int]()


def _is(item: pytest.Item, mark: str) -> bool:
    return item.get_closest_marker(mark) is not None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (not _is(item, "ray"), _is(item, "compiled")))
    for item in items:
        file, _, test = item.nodeid.partition("::")
        group = "ray" if _is(item, "ray") else f"{file} {test}" if _is(item, "compiled") else file
        item.add_marker(pytest.mark.xdist_group(group.replace("@", " ")))


def _graphs() -> int:
    """How many graphs torch's compiler has made into code, or fetched from its cache, in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    counted = {} if dynamo is None else dynamo.counters["inductor"]
    return sum(number for name, number in counted.items() if name.startswith("fxgraph_cache"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_GRAPHS] = _graphs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield  # everything is torn down, then judged
    if _graphs() > item.stash[_GRAPHS] and not _is(item, "compiled"):
        pytest.fail("a test that compiles to machine code is marked: pytest.mark.compiled")
