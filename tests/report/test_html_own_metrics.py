"""The static page draws the metrics that the runs' task has measured under names of its own."""

from __future__ import annotations

from pathlib import Path

from altgrad.html import html_report
from altgrad.results import RunWriter
from altgrad.storage.folder import Folder
from tests.support.html_tree import Node, parse
from tests.support.results import generated_results as generated

NOW = generated.DAY_AGO + 3600
STEPS = range(1, 11)
VALUES = {"accuracy": lambda step, run: step / 20 + run / 10, "validation_accuracy": lambda step, run: step / 30}


def written(sweep: Folder, task: str) -> Folder:
    for run in range(2):
        invented = generated.InventedRun(steps=10, format=("BF16", "E4M3")[run])
        info = invented.info(sweep.name)
        info["config"] = info["config"] | {"task": task}
        writer = RunWriter(sweep / f"run{run}", flush_seconds=1e9)
        writer.start(info | {"run": f"run{run}", "started": generated.DAY_AGO})
        for step in STEPS:
            writer.step({"step": step, "loss": 3.0 - step / 10})
            if task != "gpt":
                names = VALUES if run == 0 else ("accuracy",)
                writer.own(step, {name: VALUES[name](step, run) for name in names})
        writer.end("completed", None, {})
    return sweep


def curves_of(sweep: Folder) -> Node:
    return parse(html_report(sweep, NOW)).one("section", **{"aria-labelledby": "curves"})


def test_each_metric_of_the_task_has_a_chart_with_a_line_for_each_run_that_measured_it(tmp_path: Path) -> None:
    section = curves_of(written(Folder.at(tmp_path / "sweep"), "regression"))
    titles = [chart.one("title").text for chart in section.all("svg", class_="chart")]
    assert titles[-2:] == ["Accuracy of all runs", "Validation accuracy of all runs"]
    for chart, runs in zip([*section.all("svg", class_="chart")][-2:], (2, 1), strict=True):
        used = [use.attributes["href"].removeprefix("#") for use in chart.all("use")]
        assert len(used) == runs == len(set(used))
        paths = [path for path in section.all("path") if path.attributes.get("id") in used]
        assert len(paths) == runs, "each line is written once"
        assert all(path.attributes["d"].count("l") == len(STEPS) - 1 for path in paths)
    described = [*section.all("svg", class_="chart")][-2].one("desc").text
    assert "2 runs, up to step 10." in described
    assert "Metrics of the task" in section.text


def test_without_such_metrics_nothing_is_said_of_them(tmp_path: Path) -> None:
    section = curves_of(written(Folder.at(tmp_path / "sweep"), "gpt"))
    assert "Metrics of the task" not in section.text
    assert len([*section.all("svg", class_="chart")]) == 3  # all runs, and each format


def test_a_damaged_part_is_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    sweep = written(Folder.at(tmp_path / "sweep"), "regression")
    [part] = (tmp_path / "sweep" / "run0" / "own").glob("*.parquet")
    part.write_bytes(b"no parquet")
    page = html_report(sweep, NOW)
    assert f"own/{part.name}" in page and "Accuracy of all runs" in page and "Validation accuracy" not in page
