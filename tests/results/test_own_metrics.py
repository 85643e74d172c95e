"""A task's own metrics become curves like any other metric."""

from __future__ import annotations

import math
from pathlib import Path

from altgrad.config.train_config import TrainConfig
from altgrad.metrics import described
from altgrad.results import RunWriter, read_run
from altgrad.results.reading.own_metrics import curve_of, own_names
from altgrad.show.drawn_curves import View, line
from altgrad.storage.folder import Folder
from tests.support.dashboard_pages import show, words
from tests.support.results.written_runs import rows_of, write_run


def test_own_metrics_are_curves_of_their_own(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path)
    write_run(sweep, "plain", {100: 3.0})
    writer = RunWriter(sweep / "own", flush_seconds=1e9)
    writer.start({"run": "own", "config": TrainConfig(task="my.task:Mine").model_dump()})
    for step in range(1, 7):
        writer.step({"step": step, "loss": 1 / step})
        writer.own(step, {"accuracy": step / 10} | ({"validation_accuracy": math.nan} if step == 4 else {}))
    writer.end("completed", None, {})
    run, plain = read_run(sweep / "own"), read_run(sweep / "plain")
    assert own_names(run) == ["accuracy", "validation_accuracy"] and own_names(plain) == []
    assert curve_of(run, "accuracy").values.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert curve_of(run, "accuracy").steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve_of(run, "loss").values.tolist() == [1 / step for step in range(1, 7)]
    drawn = line(rows_of(sweep)["own"], run, View("validation_accuracy"))
    assert drawn is not None and [(span.first, span.count) for span in drawn.spans] == [(4, 1)]
    assert line(rows_of(sweep)["own"], run, View("nothing")) is None
    assert described("validation_accuracy").axis_in("nats") == "Validation accuracy"


def test_own_metrics_can_be_chosen_on_the_dashboard(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path) / "one"
    sweep.write_json("sweep.json", {"schema": 1, "sweep": "one", "runs": []})
    writer = RunWriter(sweep / "own", flush_seconds=1e9)
    writer.start({"run": "own", "sweep": "one", "config": TrainConfig(task="my.task:Mine").model_dump(), "unit": "dB"})
    for step in (1, 2, 3):
        writer.step({"step": step, "loss": 1 / step})
        writer.own(step, {"accuracy": step / 10})
    writer.end("completed", None, {})
    for page, query in (("curves", {"metric": "accuracy"}), ("run", {"run": "own", "metrics": "accuracy"})):
        app = show(tmp_path, page, sweep="one", **query)
        assert not app.exception and "was not measured" not in words(app) and "not been measured" not in words(app)
        options = [option for kind in ("selectbox", "multiselect") for box in app.get(kind) for option in box.options]
        assert "Accuracy" in options and (page == "run" or "Training loss (dB)" in options)
