"""A column or an axis of a metric is called as the metrics' table says: no module writes such a heading by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from altgrad.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    word
    for metric in METRICS.values()
    for word in (metric.label, metric.heading, metric.axis_in(""), metric.axis_in("nats"))
}
# Here the word is no metric of a run.
OF_SOMETHING_ELSE = {
    ("altgrad/report/failure_report.py", "Loss"),  # a section about training and validation loss
    ("dashboard/views/formats.py", "Overflow"),  # of a format: of a tensor that is rounded without a run
    ("dashboard/figures/format_figures.py", "Overflow"),  # likewise
}


def written_by_hand(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string in the source that is a metric's label, short label, or label with unit."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in WORDS:
            yield node.lineno, node.value


def test_no_module_but_the_metrics_table_writes_the_heading_of_a_metric() -> None:
    found = {
        (str(file.relative_to(ROOT)), text): line
        for package in ("altgrad", "tune", "dashboard")
        for file in sorted((ROOT / package).rglob("*.py"))
        if file != ROOT / "altgrad" / "metrics.py"
        for line, text in written_by_hand(file.read_text())
    }
    assert found.keys() == OF_SOMETHING_ELSE, found


@pytest.mark.parametrize("head", ["Stall rate", "Stalled", "Elapsed time (s)", "Training loss (nats)"])
def test_a_heading_written_by_hand_is_found(head: str) -> None:
    assert list(written_by_hand(f"\nHEADS = ('Run', {head!r})")) == [(2, head)]


def test_no_two_metrics_share_a_heading() -> None:
    heads = [metric.heading for metric in METRICS.values()]
    assert len(set(heads)) == len(heads)
