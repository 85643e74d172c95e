"""The board of groups of the static report and the Sweep page: figures as by scipy, marks counted, one scale."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from scipy import stats

from altgrad.html import html_report
from altgrad.html.board import BoardRun, group_board, run_board
from altgrad.html.sweep_contents import read_contents
from altgrad.results import Verdict
from altgrad.show.palette import ALARM, format_colour
from altgrad.storage.folder import Folder
from tests.support.html_tree import Node, parse
from tests.support.results.written_runs import write_run

NAN = float("nan")
GAPS = {"E4M3": (0.001, 0.002, 0.0018), "E5M2": (0.05, 0.06, 0.055)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """BF16, two whole formats, one that dies in two of three seeds, one that ends in NaN."""
    folder = Folder.at(tmp_path_factory.mktemp("board") / "s")
    for seed in range(3):
        loss = {step: 5 - step / 50 for step in range(0, 101, 5)}
        write_run(folder, f"bf16-{seed}", {100: 2.0}, config={"seed": seed}, loss=loss)
        for fmt, gaps in GAPS.items():
            spike = {50: NAN, 55: NAN} if fmt == "E5M2" else {}  # in the middle: it goes on, and is not dead
            write_run(folder, f"{fmt}-{seed}", {100: 2.0 + gaps[seed]}, config={"seed": seed, "format": fmt},
                      loss=loss | spike)  # fmt: skip
        early = {step: value for step, value in loss.items() if step <= 60}
        if seed:
            write_run(folder, f"E7M0-{seed}", {50: 9.0}, config={"seed": seed, "format": "E7M0"}, status="collapsed",
                      verdict=Verdict(60, "stalled", "loss", 1.0, 2.0), loss=early)  # fmt: skip
        else:
            write_run(folder, "E7M0-0", {100: 2.5}, config={"seed": 0, "format": "E7M0"}, loss=loss)
        write_run(folder, f"E6M1-{seed}", {100: NAN}, config={"seed": seed, "format": "E6M1"}, loss=loss | {100: NAN})
    return folder


def board(sweep: Folder) -> dict[str, Node]:
    contents = read_contents(sweep)
    drawn = parse(group_board(contents.rows, contents.lines, lambda row: f"curves?group={row.run}&x=<b>", images=True))
    return {row.one("th").text: row for row in drawn.one("tbody").all("tr")}


def pictures(row: Node) -> list[str]:
    return [unquote(str(image.attributes["src"]).removeprefix("data:image/svg+xml,")) for image in row.all("img")]


def test_every_row_says_its_gap_interval_and_verdict(sweep: Folder) -> None:
    rows = board(sweep)
    assert next(iter(rows)) == "BF16" and rows.keys() == {"BF16", "E4M3", "E5M2", "E7M0", "E6M1"}
    for fmt, gaps in GAPS.items():
        low, high = stats.t.interval(0.95, 2, loc=np.mean(gaps), scale=stats.sem(gaps))
        assert f"{np.mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}] at step 100" in rows[fmt].text
    assert "equivalent to BF16 within 0.01 nats" in rows["E4M3"].text
    assert "worse than BF16 by more than 0.01 nats" in rows["E5M2"].text
    assert (
        "not as good as BF16: 2 of 3 collapsed" in rows["E7M0"].text and "2 collapsed, 1 completed" in rows["E7M0"].text
    )
    assert "NaN" in rows["E6M1"].text and "3 reached NaN or inf" in rows["E6M1"].text
    assert rows["E4M3"].one("a").attributes["href"] == "curves?group=E4M3-0&x=<b>"


def test_bars_share_one_scale_and_each_death_has_its_cross(sweep: Folder) -> None:
    rows = board(sweep)
    drawn = {name: pictures(row) for name, row in rows.items()}
    assert {name: len(found) for name, found in drawn.items()} == {
        "BF16": 1,
        "E4M3": 2,
        "E5M2": 2,
        "E7M0": 2,
        "E6M1": 1,
    }
    assert {name: found[-1].count(f'stroke="{ALARM}"') for name, found in drawn.items()} == {
        "BF16": 0, "E4M3": 0, "E5M2": 0, "E7M0": 2, "E6M1": 3,
    }  # fmt: skip
    bands = {re.search(r"<rect ([^>]*)", found[0])[1] for name, found in drawn.items() if len(found) == 2}  # type: ignore[index]
    assert len(bands) == 1, "the margin is at the same place in each row"
    at = {name: float(re.search(r'cx="([^"]*)"', drawn[name][0])[1]) for name in GAPS}  # type: ignore[index]
    left, width = (float(re.search(rf'{key}="([^"]*)"', min(bands))[1]) for key in ("x", "width"))  # type: ignore[index]
    middle, scale = left + width / 2, width / 0.02  # the band is from -0.01 to +0.01
    for name, gaps in GAPS.items():
        assert at[name] == pytest.approx(middle + scale * np.mean(gaps), abs=0.01)
        assert format_colour(name) in drawn[name][0] and format_colour(name) in drawn[name][1]


def test_the_static_report_has_the_board_drawn_in_the_page(sweep: Folder) -> None:
    section = parse(html_report(sweep, 0.0)).one("section", **{"aria-labelledby": "groups"})
    assert not list(section.all("img")), "its policy is no file and no image"
    drawings = list(section.all("svg"))
    assert len(drawings) == 8 and all(drawing.one("title").text for drawing in drawings)


def test_coverage_and_the_place_of_a_branch_stand_below_the_name_of_a_group(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    branch = {"parent": str(tmp_path / "trunk"), "run": "trunk <b>", "step": 300, "changes": {"format": "E4M3"}}
    for seed, share in ((1, 0.9621), (2, 0.9534)):
        info = {"coverage": {"share": share}, **({"branch": branch} if seed == 1 else {})}
        write_run(
            folder, f"e4m3-{seed}", {100: 2.0}, config={"seed": seed, "format": "E4M3"}, info=info, loss={100: 2.0}
        )
    contents = read_contents(folder)
    (row,) = parse(group_board(contents.rows, contents.lines, lambda row: None)).one("tbody").all("tr")
    assert [note.text for note in row.one("th").all("div")] == [
        "95.3% to 96.2% of FLOPs rounded", "branched from trunk <b> at step 300",
    ]  # fmt: skip


def test_a_gap_that_is_not_final_says_why_and_nothing_is_said_of_drawings_that_no_row_has(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "s")
    loss = {10: 3.0, 20: 2.0}
    for seed in range(2):  # the second baseline dies at step 50, the formats complete
        ending: Any = {"status": "failed"} if seed else {}
        write_run(sweep, f"bf16-{seed}", {50: 3.0} | ({} if seed else {100: 2.0}), config={"seed": seed}, **ending)
        for fmt, losses in {"E4M3": {50: 3.25, 100: 2.5}, "E5M2": {50: NAN, 100: 2.5}}.items():
            write_run(sweep, f"{fmt}-{seed}", losses, config={"seed": seed, "format": fmt}, loss=loss)
    write_run(sweep, "E7M0-0", {50: 9.0}, config={"format": "E7M0", "seed": 0}, status="stopped")
    contents = read_contents(sweep)
    trials = {row.run: BoardRun(row) for row in contents.rows}
    drawn = parse(run_board(list(trials.values()), contents.lines))
    rows = [(row.one("th").text, list(row.all("td"))[1].text) for row in drawn.one("tbody").all("tr")]
    said = {name[:6]: cell for name, cell in rows}
    assert said["E4M3-0"] == "+0.500 at step 100"
    assert said["E4M3-1"] == "+0.250 at step 50, the last of both"
    assert said["E5M2-1"] == "NaN at step 50, the last of both"
    assert said["E7M0-0"] == "+6.000 at step 50, before it was stopped"
    assert "Gaps on one scale" in drawn.text and "with the BF16 run of the same seed in grey" in drawn.text
    alone = [trial for trial in trials.values() if trial.row.run == "E5M2-1"]
    for lines in (contents.lines, {}):
        text = parse(run_board([BoardRun(replace(alone[0].row, baseline=None))], lines)).text
        assert "Gaps on one scale" not in text and "BF16 run" not in text
        assert ("Loss: training loss on one scale" in text) == bool(lines)
        groups = parse(group_board([alone[0].row], lines, lambda row: None)).text
        assert "Bars:" not in groups and ("Loss: training loss on one scale" in groups) == bool(lines)
