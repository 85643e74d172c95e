"""How `make test` shares two cores among its processes (pytest-xdist), and what the marks of tests are held to.

The tests of a file stay together, so that its fixtures are made once, and those that visit the dashboard, so that there
is one browser.  Files that start Ray, and the browser, wait most of their time, so that there is a process more than
cores, and each of them is followed by two files that compute.  Tests that compile come last and each by itself: they
take seconds to a minute, so that all processes have work until the end.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator

import pytest

gc.disable()  # until everything is imported and collected: none of it goes again

# Before anything imports torch: three processes with two threads each on two cores take many times as long, and so do
# the compiler's own processes, each of which imports torch
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# Nothing here outlasts the machine: a disk that is asked thousands of times whether it holds takes minutes to say so
os.fsync = lambda _: None

# Seconds, for hangs: a test with processes of Ray takes ten times as long beside eight other programs on two cores.
_LIMITS = {"ray": 2400, "browser": 1200}
_GRAPHS = pytest.StashKey[int]()


def _is(item: pytest.Item, mark: str) -> bool:
    return item.get_closest_marker(mark) is not None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        file, _, test = item.nodeid.partition("::")
        alone = f"{file} {test}"
        groups = {"compiled": alone, "browser": "browser"}
        own = item.get_closest_marker("xdist_group")  # of a file whose compiling tests share what a fixture compiles
        group = (
            own.args[0] if own else next((groups[mark] for mark in groups if _is(item, mark)), file).replace("@", " ")
        )
        item.add_marker(pytest.mark.xdist_group(group))
        for limit in (seconds for mark, seconds in _LIMITS.items() if _is(item, mark)):
            item.add_marker(pytest.mark.timeout(limit), append=False)
        if _groups_are_in_ids(config) and hasattr(item, "_id"):
            item._id = type(item._id).parse(f"{item.nodeid}@{group}")
    items[:] = _in_turn(items)


def _in_turn(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests by groups in the order in which they are handed out: one that waits, two that compute, and so on."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(next(item.iter_markers("xdist_group")).args[0], []).append(item)
    waiting: list[list[pytest.Item]] = []
    computing: list[list[pytest.Item]] = []
    compiled: list[list[pytest.Item]] = []
    for group in groups.values():
        waits = any(_is(item, "ray") or _is(item, "browser") for item in group)
        (waiting if waits else compiled if _is(group[0], "compiled") else computing).append(group)
    waiting.sort(key=lambda group: not _is(group[0], "browser"))  # the longest of all comes first
    ordered: list[list[pytest.Item]] = []
    while waiting:
        ordered += [waiting.pop(0), *computing[:2]]
        del computing[:2]
    return [item for group in (*ordered, *computing, *compiled) for item in group]


def _groups_are_in_ids(config: pytest.Config) -> bool:
    """Whether this is a process of xdist: the ids of its tests end with their groups, by which they are handed out.

    xdist 3.8 writes these ids into `_nodeid`, which pytest from 9.2 on does not read: its ids are in `_id`.
    """
    return bool(getattr(config.option, "loadgroup", False))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without their groups tests would be handed out one by one, and all processes would make all fixtures."""
    if _groups_are_in_ids(session.config) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("tests are not grouped: this pytest-xdist does not fit this pytest")
    gc.freeze()
    gc.enable()


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
