"""One server and one browser for all tests that visit the dashboard; without Chromium or Playwright they skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    root = tmp_path_factory.mktemp("results")
    generated.mixed_sweep(root)
    return root


@pytest.fixture(scope="package")
def server(browser: Any, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dashboard_server(results, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    opened = Visit(browser, server)
    yield opened
    opened.close()
