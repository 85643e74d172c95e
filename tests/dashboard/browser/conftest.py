"""One server, one browser and two tabs for all tests that visit the dashboard; without Chromium they skip.

A tab that has been there before has the front end's scripts in its cache: it opens a page in a part of the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recorded import recorded_sweeps
from tests.servers.browser_visit import ARGUMENTS, CHROMIUM, Visit, dashboard_server
from tests.support.results import generated_results as generated


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"{CHROMIUM} is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the sweep `mixed`, which is invented, and the recorded ones."""
    root = recorded_sweeps(tmp_path_factory.mktemp("results"))
    generated.mixed_sweep(root)
    return root


@pytest.fixture(scope="package")
def server(browser: Any, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dashboard_server(results, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="package")
def tabs(browser: Any, server: str) -> Iterator[tuple[Visit, Visit]]:
    opened = Visit(browser, server), Visit(browser, server)
    yield opened
    for one in opened:
        one.close()


@pytest.fixture
def visit(tabs: tuple[Visit, Visit]) -> Iterator[Visit]:
    """The tab as a viewer opens it: wide, light, and with nothing noted about what it showed before."""
    yield from _visited(tabs[0])


@pytest.fixture
def somebody_else(tabs: tuple[Visit, Visit]) -> Iterator[Visit]:
    """As `visit`, in a browser profile of its own."""
    yield from _visited(tabs[1])


def _visited(tab: Visit) -> Iterator[Visit]:
    tab.begin()
    yield tab
    tab.leave()
