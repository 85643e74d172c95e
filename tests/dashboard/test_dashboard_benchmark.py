"""The rows of `make bench` about the dashboard can be measured; here on three short runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from altgrad.storage.folder import Folder
from bench import dashboard
from bench.rows import ROWS

pytestmark = pytest.mark.long


@pytest.fixture
def short_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dashboard.results

    def short(runs: int = 3, steps: int = 50) -> Folder:
        return made(min(runs, 3), min(steps, 50))

    monkeypatch.setattr(dashboard, "_KEPT", tmp_path)
    monkeypatch.setattr(dashboard, "results", short)


@pytest.mark.parametrize(
    "name", [f"dashboard_{what}" for what in ("sweep_cold", "sweep_warm", "nothing_new", "curves")]
)
def test_a_row_of_the_dashboard_is_measured(name: str, short_results: None) -> None:
    (seconds,) = ROWS[name].measure(1)
    assert 0 < seconds < 60
