"""Zoom and hidden entries that a link names are drawn, what is no range is said, and a zoom of another metric ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from dashboard.chart_state import ChartState
from tests.support.dashboard_pages import show, words
from tests.support.drawn_figures import figures
from tests.support.results import generated_results as generated


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    sweep = generated.new_sweep(root, "s")
    for format in ("BF16", "E4M3"):
        for seed in (1, 2):
            run = generated.InventedRun(format, seed=seed, steps=60, eval_interval=20, diagnostic_interval=10)
            generated.write_run(sweep, run)
    return root


@pytest.fixture(autouse=True)
def arguments(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the app when a test uses a control, which runs it again."""
    monkeypatch.setattr("sys.argv", ["streamlit_app.py", str(root)])


def test_a_link_zooms_and_hides_a_group_by_any_of_its_runs(root: Path) -> None:
    app = show(root, "curves", zoom_x="10~30", zoom_y="1.5~2.25", hide="e4m3_lr0.0006_s2")
    (figure,) = figures(app)
    assert figure["layout"]["xaxis"]["range"] == [10, 30] and figure["layout"]["yaxis"]["range"] == [1.5, 2.25]
    hidden = {trace.get("legendgroup") for trace in figure["data"] if trace.get("visible") == "legendonly"}
    assert hidden == {"e4m3_lr0.0006_s1"}
    app.button[0].click().run()
    assert not {"zoom_x", "zoom_y", "hide"} & app.query_params.keys()
    (figure,) = figures(app)
    assert "range" not in figure["layout"]["xaxis"] and not any("visible" in trace for trace in figure["data"])


def test_a_range_is_in_units_of_the_data_on_a_logarithmic_axis(root: Path) -> None:
    (figure,) = figures(show(root, "curves", zoom_x="10~1000", zoom_y="-1~3", log_x="true", log_y="true"))
    np.testing.assert_allclose(figure["layout"]["xaxis"]["range"], [1, 3])
    low, high = figure["layout"]["yaxis"]["range"]
    assert 10**low > 0 and high < np.log10(6), "a range that reaches below 0 is none"


@pytest.mark.parametrize("text", ["100", "a~b", "3~1", "nan~2", "1~inf", ""])
def test_a_range_that_is_none_is_said(root: Path, text: str) -> None:
    app = show(root, "curves", zoom_y=text)
    assert not app.exception
    assert f"`zoom_y={text}`, which is no range" in words(app)


def test_a_zoom_ends_when_its_axis_shows_something_else(root: Path) -> None:
    app = show(root, "curves", zoom_x="10~30", zoom_y="1.5~2")
    next(box for box in app.selectbox if box.label == "Metric").select("gradient_norm").run()
    assert "zoom_x" in app.query_params and "zoom_y" not in app.query_params
    next(box for box in app.selectbox if box.label == "Over").select("tokens").run()
    assert "zoom_x" not in app.query_params


def test_a_state_without_anything_changes_no_figure() -> None:
    figure = go.Figure({"data": [{"type": "scatter", "x": [1], "y": [2], "legendgroup": "a"}]})
    before = figure.to_json()
    ChartState().put_on(figure)
    assert figure.to_json() == before


def test_updates_can_be_paused_only_while_a_run_is_under_way(root: Path, tmp_path: Path) -> None:
    generated.running_sweep(tmp_path)
    app = show(tmp_path, "curves", pause="true")
    assert [toggle.value for toggle in app.toggle if toggle.label == "Pause live updates"] == [True]
    assert "Paused: nothing new is read" in words(app)
    ended = show(root, "curves", pause="true")
    assert "Pause live updates" not in [toggle.label for toggle in ended.toggle] and "Paused" not in words(ended)
