"""The static page of a sweep: the comparison's numbers, every non-finite value marked, nothing from outside."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from altgrad.__main__ import main
from altgrad.compare import comparison, comparison_csv, rescue_matrix
from altgrad.compare.comparison_table import COLUMNS
from altgrad.html import html_report
from altgrad.html.drawing.chart_area import ticks
from altgrad.results import RunWriter, Verdict, list_runs
from altgrad.storage.folder import Folder
from tests.support.html_tree import Node, parse
from tests.support.results import generated_results as generated

NOW = generated.DAY_AGO + 3600
CHROMIUM = "/usr/bin/chromium"
HOSTILE = "x<script>alert(1)</script>&\"'"


def write_losses(
    sweep: Folder, name: str, losses: dict[int, float], verdict: Verdict | None = None, **run: str
) -> None:
    """A run with these losses and nothing else; collapsed where it has a verdict."""
    invented = generated.InventedRun(steps=max(losses, default=10), **run)  # type: ignore[arg-type]
    folder = sweep / name.replace("/", "")
    writer = RunWriter(folder, flush_seconds=1e9)
    writer.start(invented.info(sweep.name) | {"run": name, "started": generated.DAY_AGO})
    for step, loss in losses.items():
        writer.step({"step": step, "loss": loss})
    writer.end("collapsed" if verdict else "completed", verdict, {})
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    sweep = generated.mixed_sweep(tmp_path_factory.mktemp("results"))
    hostile = Verdict(9, "stalled", "<b>loss</b>", 1.0, 2.0)
    folder = write_losses(sweep, HOSTILE, {step: 2.0 for step in range(1, 11)}, hostile, format="E6M1")
    report = (
        f"# {HOSTILE}\n\n![i](http://x.org/a.png) <img src=//x.org/b> [l](//x.org) <http://x.org>\n\n|a|\n|---|\n|1|\n"
    )
    folder.write_bytes("failure_report.md", report.encode())
    return sweep


@pytest.fixture(scope="module")
def page(mixed: Folder) -> Node:
    return parse(html_report(mixed, NOW))


def section(page: Node, name: str) -> Node:
    return page.one("section", **{"aria-labelledby": name})


def overlay(page: Node) -> Node:
    return section(page, "curves").one("svg", class_="chart")


def rows_of(table: Node) -> list[list[Node]]:
    return [[cell for cell in row.children if isinstance(cell, Node)] for row in table.one("tbody").all("tr")]


def heads_of(table: Node) -> list[str]:
    return [head.text for head in table.one("thead").all("th")]


def test_the_page_asks_nothing_of_the_outside_and_runs_no_script(page: Node) -> None:
    for node in page.all():
        assert node.tag not in ("script", "img", "link", "iframe", "object", "embed", "base", "form"), node.tag
        for name, value in node.attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster", "background"):
                assert value.startswith(("#", "data:")) and "//" not in value, value
            assert name != "style" or "url" not in value
    assert not re.search(r"url\(|@import|//", page.one("style").text)
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'")


def test_a_name_is_never_markup(page: Node) -> None:
    table = section(page, "comparison").one("table")
    assert HOSTILE in [row[0].text for row in rows_of(table)]
    assert not list(page.all("b"))
    report = next(one for one in page.all("article") if "x.org" in one.text)
    assert "![i](http://x.org/a.png) <img src=//x.org/b> [l](//x.org) <http://x.org>" in report.text


def test_the_tables_numbers_are_the_csvs(page: Node, mixed: Folder) -> None:
    rows = comparison(list_runs(mixed)[0])
    records = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    table = section(page, "comparison").one("table")
    heads, body = heads_of(table), rows_of(table)
    assert [cells[0].text for cells in body] == [record["run"] for record in records]
    shown = [column for column in COLUMNS if column.head in heads]
    for column in COLUMNS:
        assert column in shown or all(record[column.name] == "" for record in records)
    for row, cells, record in zip(rows, body, records, strict=True):
        for column in shown:
            cell = cells[heads.index(column.head)]
            assert cell.text == column.shown(row)
            exact = [data.attributes["value"] for data in cell.all("data")]
            if column.is_number:
                assert exact == ([record[column.name]] if record[column.name] else [])


def test_the_download_is_the_comparison(page: Node, mixed: Folder) -> None:
    link = next(one for one in section(page, "comparison").all("a") if "download" in one.attributes)
    content = unquote(link.attributes["href"].removeprefix("data:text/csv;charset=utf-8,"))
    assert content == comparison_csv(comparison(list_runs(mixed)[0]))


def test_every_non_finite_stretch_has_one_mark_with_its_count(page: Node, mixed: Folder) -> None:
    expected = []
    for run in list_runs(mixed)[0]:
        losses = run.table("steps", ["loss"])["loss"].to_numpy()
        stretches = "".join("." if math.isfinite(loss) else "x" for loss in losses).split(".")
        expected += [len(stretch) for stretch in stretches if stretch]
    assert sorted(expected) == [5, 21]  # as planned in the generator
    marks = list(overlay(page).all("rect", class_="non-finite"))
    assert sorted(int(mark.attributes["data-count"]) for mark in marks) == sorted(expected)
    assert len(list(overlay(page).all("path", class_="last-finite"))) == len(expected)


def test_a_spike_of_one_step_is_drawn(tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    losses = {step: 2.0 + 0.1 * math.sin(step) for step in range(1, 20_001)}
    write_losses(sweep, "spike", losses | {12_345: 2.25})
    d = parse(html_report(sweep, NOW)).one("path", id="curve-0").attributes["d"]
    steps = re.findall(r"[Ml](-?\d+) (-?\d+)", d)
    assert len(steps) < 2000 and d.count("M") == 1
    x, y = np.cumsum(np.array(steps, int), axis=0).T
    assert x[y.argmin()] == round(4000 * (12_345 - 1) / 19_999)  # up is towards zero
    assert np.sort(y)[0] < np.sort(y)[1] - 100  # and no other point is near it


def test_a_diverged_run_flattens_nobody_and_is_marked_where_it_leaves(tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    write_losses(sweep, "calm", {step: 2.0 - step / 100 for step in range(1, 51)})
    wild = {step: 2.0 if step < 20 else 10.0**step for step in range(1, 51)}
    write_losses(sweep, "wild", wild, Verdict(45, "diverged", "loss", 1e9, 3.0), format="E5M2")
    drawn = overlay(parse(html_report(sweep, NOW)))
    marks = list(drawn.all("path", class_="off-scale"))
    assert [mark.one("title").text for mark in marks] == ["wild leaves the scale above from step 20 on"]
    assert [mark.one("title").text for mark in drawn.all("path", class_="verdict")] == [
        "wild collapsed: diverged at step 45: loss 1e+09, limit 3"
    ]
    values = [float(text.text) for text in drawn.all("text") if text.attributes.get("text-anchor") == "end"
              and re.fullmatch(r"[\d.]+", text.text)]  # fmt: skip
    assert values and max(values) < 3


def test_an_event_beyond_the_last_measurement_lies_on_the_axis_and_says_so(tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    folder = write_losses(sweep, "r", {step: 3.0 - step / 50 for step in range(1, 51)}, generated.STALLED)
    end = (folder / "end.json").path
    writer = RunWriter(folder, flush_seconds=1e9, attempt=0)
    writer.event(20, "skip")
    writer.event(70, "skip")
    writer.flush()
    assert Path(end).exists()
    chart = parse(html_report(sweep, NOW)).one("article").one("svg", class_="chart")
    marks = {mark.one("title").text: mark for mark in chart.all("path", class_="event")}
    assert set(marks) == {"r: skip at step 20", "r: skip at step 70; nothing finite was measured there"}
    axis = chart.one("path", class_="axis").attributes
    places = [re.match(r"M([\d.]+) ([\d.]+)", mark.attributes["d"]) for mark in marks.values()]
    heights = [float(place[2]) for place in places if place]
    assert heights[0] < heights[1], axis
    verdict = chart.one("path", class_="verdict")
    assert "nothing finite was measured there" in verdict.one("title").text


def test_runs_without_a_finite_value_are_shown(tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    write_losses(sweep, "nothing", {})
    page = parse(html_report(sweep, NOW))
    assert "Training loss has not been measured in any run." in section(page, "curves").text
    write_losses(sweep, "broken", {step: math.nan for step in range(1, 9)})
    drawn = overlay(parse(html_report(sweep, NOW)))
    assert [mark.attributes["data-count"] for mark in drawn.all("rect", class_="non-finite")] == ["8"]
    assert not list(drawn.all("path", class_="last-finite"))


def test_the_matrix_says_what_the_comparison_computes(page: Node, mixed: Folder) -> None:
    cells = rescue_matrix(comparison(list_runs(mixed)[0]))
    table = section(page, "rescues").one("div", class_="matrix")
    heads = heads_of(table)
    found = {}
    for head, *others in rows_of(table):
        for name, cell in zip(heads[1:], others, strict=True):
            lines = [line.text for box in cell.all("div") for line in box.children if isinstance(line, Node)]
            if lines:
                found[head.text, name] = lines, bool(list(cell.all("div", class_="few")))
    expected = {(f"{fmt} {variant}".strip(), name): (cell.lines, cell.ended < 3)
                for (fmt, variant, name), cell in cells.items()}  # fmt: skip
    assert found == expected


def test_each_collapsed_run_has_its_report_under_its_links(page: Node, mixed: Folder) -> None:
    runs = {run.name: run for run in list_runs(mixed)[0] if run.verdict is not None}
    links = {row[0].text: row[0].one("a").attributes["href"] for row in rows_of(section(page, "failures").one("table"))}
    assert links.keys() == runs.keys() and len(set(links.values())) == len(links)
    for name, link in links.items():
        report = page.one("article", id=link.removeprefix("#"))
        assert report.one("h4").text == name and list(report.all("svg", class_="chart"))
        if name != HOSTILE:
            assert runs[name].verdict.sentence() in report.text


def test_a_report_that_was_never_written_is_made_and_its_plot_is_a_figure(tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    write_losses(sweep, "r", {step: 2.0 for step in range(1, 60)}, generated.STALLED)
    report = parse(html_report(sweep, NOW)).one("article")
    assert [head.text for head in report.all("h5")][:3] == ["Summary", "Loss", "What moved first"]
    assert "⠉" not in report.text and "master_weights: true" in report.one("pre").text
    assert len(list(report.all("figure"))) == 1


def test_what_cannot_be_read_is_said_and_hides_nothing_else(page: Node, mixed: Folder) -> None:
    said = section(page, "unreadable").text
    for name in ("torn", "from_the_future", "e2m5_lr0.0006_s42"):
        assert name in said
    assert "schema 99" in said and "damaged parts are left out: steps/part-000-000002.parquet" in said
    assert len(rows_of(section(page, "comparison").one("table"))) == len(list_runs(mixed)[0])


COMPLETE = {"format": "E4M3", "seed": 1, "max_steps": 10, "learning_rate": 0.1}


def test_a_run_with_half_a_record_becomes_a_sentence(tmp_path: Path) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    (sweep / "half").write_json("run.json", {"schema": 1, "run": "half", "config": {"format": "E4M3"}})
    (sweep / "odd").write_json(
        "run.json", {"schema": 1, "run": "odd", "started": 1, "config": COMPLETE | {"format": 43}}
    )
    page = parse(html_report(sweep, NOW))
    assert "No run can be shown" in page.text
    said = section(page, "unreadable").text
    assert "it lacks config.seed, config.max_steps, config.learning_rate, started" in said
    assert "config.format=43: input should be a valid string" in said


def test_an_empty_sweep_and_a_running_one_have_a_page(tmp_path: Path) -> None:
    assert "No run can be shown" in parse(html_report(generated.new_sweep(tmp_path, "empty"), NOW)).text
    page = parse(html_report(generated.running_sweep(tmp_path), NOW))
    facts = dict(zip((t.text for t in page.all("dt")), (d.text for d in page.all("dd")), strict=True))
    assert facts["Runs"] == "2 of 4" and facts["Running"] == "2"


def test_pictures_and_tables_can_be_read_aloud(page: Node) -> None:
    charts = list(page.all("svg", role="img"))
    assert charts
    for chart in charts:
        assert chart.one("title").text
        assert "chart" not in chart.attributes["class"] or chart.one("desc").text
    assert all(list(figure.all("figcaption")) for figure in page.all("figure"))
    assert all(head.attributes["scope"] in ("col", "row") for head in page.all("th"))
    assert all("aria-label" in region.attributes for region in page.all("div", class_="scroll"))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    targets = {node.attributes["href"] for node in page.all() if node.attributes.get("href", "").startswith("#")}
    assert targets <= {f"#{name}" for name in ids}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.37, 5.61), (-3e-9, 2e-9), (1e12, 1.0001e12), (0.0, 7e24)])
@pytest.mark.parametrize("n", [2, 5, 9])
def test_ticks_are_round_within_the_limits_and_about_as_many_as_asked(low: float, high: float, n: int) -> None:
    found = ticks(low, high, n)
    assert 1 <= len(found) <= n + 1
    reach = high - low
    assert all(low - 1e-6 * reach <= tick <= high + 1e-6 * reach for tick in found)


def test_the_command_writes_one_file_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = generated.running_sweep(tmp_path)
    assert main(["report", str(sweep), "--html"]) == 0
    assert capsys.readouterr().out.strip() == f"{sweep}/report.html"
    assert (tmp_path / "running" / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(sweep), "--html", "--out", str(tmp_path / "a" / "b.html")]) == 0
    assert (tmp_path / "a" / "b.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.html"], "only with --html"),
        (["--html", "--out", "folder/"], "expected a file"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(generated.new_sweep(tmp_path, "s")), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--html"]) == 2
    assert "--html needs a sweep folder" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"{CHROMIUM} is not installed")
def test_a_browser_shows_it_in_light_and_dark_and_a_link_unfolds_its_report(mixed: Folder, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")
    file = tmp_path / "report.html"
    file.write_text(html_report(mixed, NOW))
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        asked: list[str] = []
        said: list[str] = []
        backgrounds = set()
        for scheme in ("light", "dark"):
            tab = browser.new_page(color_scheme=scheme)
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: said.append(message.text))
            tab.goto(file.as_uri())
            backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            report = tab.locator("article").first
            assert not report.is_visible()
            tab.locator("section[aria-labelledby=failures] table a").first.click()
            assert report.is_visible()
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not tab.evaluate(wide)
        browser.close()
    assert {url.partition("#")[0] for url in asked} == {file.as_uri()}
    assert said == [] and len(backgrounds) == 2


def test_the_page_needs_neither_torch_nor_ray_nor_streamlit() -> None:
    check = "import sys, altgrad.html; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'streamlit')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
