"""The Overview as a control room: it stops what the viewer confirms, annotates runs in a file of their own, and hides
runs without changing a number; started read-only it does none of that."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from altgrad.results.annotations import ANNOTATIONS, Annotation, read_annotations, write_annotation
from altgrad.results.stop_request import REQUEST, stop_request, stop_sentence
from altgrad.storage.folder import Folder
from dashboard import streamlit_app
from tests.support.dashboard_pages import drawn, show, words
from tests.support.results import generated_results as generated

SHORT = {"steps": 60, "eval_interval": 20, "diagnostic_interval": 10}


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A BF16 run that has ended, and two runs under way, of four that are planned."""
    monkeypatch.setattr(sys, "argv", [streamlit_app.__file__, str(tmp_path)])  # also for reruns
    sweep = generated.new_sweep(tmp_path, "s", planned=4)
    begun = time.time() + 3600  # without a lease a run counts as killed a minute after its start
    generated.write_run(sweep, generated.InventedRun("BF16", **SHORT))
    for format in ("E4M3", "E7M0"):
        generated.write_run(sweep, generated.InventedRun(format, **SHORT), "open", until=30, started=begun)
    return sweep


def button(app: AppTest, label: str) -> object:
    return next(one for one in app.button if one.label == label)


def test_running_trials_are_shown_with_progress_and_time_left(running: Folder) -> None:
    app = show(running.parent.path, "overview")
    assert not app.exception
    text = drawn(app)
    # 30 of 60 steps took 30 x 0.05 s, so 30 more take 1.5 s
    assert text.count("step 30 of 60") == 2 and "width:50.0%" in text and "left" in text
    assert any("Running now: 2" in one.value for one in app.header)
    spent = [one.value for one in app.caption if "saved by early stopping" in one.value]
    assert len(spent) == 1 and "saved by early stopping" not in "".join(one.label for one in app.metric)


@pytest.mark.parametrize("what", ["", "e4m3_lr0.0006_s42"], ids=["sweep", "run"])
def test_a_stop_is_written_only_after_it_was_confirmed_and_only_for_what_was_chosen(running: Folder, what: str) -> None:
    app = show(running.parent.path, "overview")
    app.selectbox(key="stop what").set_value(what)
    app.text_input(key="stop reason").set_value("the room is needed")
    button(app, "Stop…").click()  # type: ignore[attr-defined]
    app.run()
    assert not app.exception and "Stop" in app.warning[0].value
    assert not list(Path(running.path).rglob(REQUEST)), "nothing is written before the viewer confirms"
    button(app, "Yes, stop").click()  # type: ignore[attr-defined]
    app.run()
    assert not app.exception and "to stop; it ends at the next report" in app.success[0].value
    (written,) = Path(running.path).rglob(REQUEST)
    assert written.parent == (Path(running.path) / what if what else Path(running.path))
    request = stop_request(running / "e4m3_lr0.0006_s42", running)
    assert request is not None and stop_sentence(request) == "stop requested: the room is needed"
    assert drawn(app).count("stopping") == (1 if what else 2)


def test_no_keeps_the_run(running: Folder) -> None:
    app = show(running.parent.path, "overview")
    button(app, "Stop…").click()  # type: ignore[attr-defined]
    app.run()
    button(app, "No").click()  # type: ignore[attr-defined]
    app.run()
    assert not app.warning and not list(Path(running.path).rglob(REQUEST))


def test_read_only_stops_and_annotates_nothing_and_says_why(running: Folder) -> None:
    app = show(running.parent.path, "overview", "--read-only")
    assert not app.exception
    assert [one.label for one in app.button if not one.disabled] == []
    assert button(app, "Stop a run or the sweep").disabled  # type: ignore[attr-defined]
    assert "The dashboard was started with --read-only." in words(app)
    assert not app.text_area and not app.get("form")


def test_a_run_that_has_ended_meanwhile_is_said_and_nothing_is_written(running: Folder) -> None:
    app = show(running.parent.path, "overview")
    app.selectbox(key="stop what").set_value("e4m3_lr0.0006_s42")
    button(app, "Stop…").click()  # type: ignore[attr-defined]
    app.run()
    (running / "e4m3_lr0.0006_s42").write_json("end.json", _end())
    button(app, "Yes, stop").click()  # type: ignore[attr-defined]
    app.run()
    assert "could not be written" in app.error[0].value and "has ended" in app.error[0].value
    assert not list(Path(running.path).rglob(REQUEST))


def _end() -> dict[str, object]:
    return {"schema": 1, "ended": time.time(), "status": "completed", "verdict": None, "summary": {}}


def test_an_annotation_is_saved_beside_the_runs_and_shown(running: Folder) -> None:
    name = "e7m0_lr0.0006_s42"
    before = {path: path.read_bytes() for path in Path(running.path).rglob("*") if path.is_file()}
    app = show(running.parent.path, "overview")
    app.selectbox(key="annotated run").set_value(name)
    app.run()
    app.checkbox(key=f"star {name}").check()
    app.text_input(key=f"tags {name}").set_value(" paper , ,fig 3")
    app.text_area(key=f"note {name}").set_value("look <b>here</b>")
    button(app, "Save").click()  # type: ignore[attr-defined]
    app.run()
    assert not app.exception
    assert read_annotations(running).by_run == {name: Annotation("look <b>here</b>", True, ("paper", "fig 3"))}
    text = drawn(app)
    assert "★" in text and ">paper<" in text and "look &lt;b&gt;here&lt;/b&gt;" in text
    after = {path: path.read_bytes() for path in Path(running.path).rglob("*") if path.is_file()}
    assert after.pop(Path(running.path) / ANNOTATIONS) and after == before


@pytest.mark.parametrize("page", ["overview", "sweep", "curves", "compare"])
def test_a_hidden_run_is_on_no_page_and_every_page_says_how_many(running: Folder, page: str) -> None:
    write_annotation(running, "e7m0_lr0.0006_s42", Annotation(hidden=True))
    app = show(running.parent.path, page, **({"rows": "run", "columns": ["run"]} if page == "sweep" else {}))
    assert not app.exception
    assert "1 run is hidden and left out: e7m0_lr0.0006_s42." in words(app)
    marked = "\n".join(part for part in drawn(app).split("<tr>") if ">hidden<" not in part)
    charts = "\n".join(str(chart.proto) for chart in app.get("plotly_chart"))
    tables = "\n".join(table.value.to_csv() for table in app.dataframe)
    assert "E4M3" in marked + charts + tables and "E7M0" not in marked + charts + tables
    options = [str(option) for box in app.multiselect for option in box.options]
    assert "e7m0_lr0.0006_s42" not in options


def test_a_spoilt_file_of_annotations_hides_nothing_and_is_said(running: Folder) -> None:
    (Path(running.path) / ANNOTATIONS).write_text('{"schema": 1, "runs"')
    app = show(running.parent.path, "overview")
    assert not app.exception and drawn(app).count("step 30 of 60") == 2
    assert ANNOTATIONS in words(app) and "not JSON" in words(app)
