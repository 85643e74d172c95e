"""The Sweep page shows what pandas and scipy compute from the parquet parts alone: with a dead seed, two rates, a run
that is still under way, and gaps at different steps."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
from streamlit.testing.v1 import AppTest

from altgrad.results import Verdict
from tests.support.dashboard_pages import drawn, show
from tests.support.html_tree import parse
from tests.support.results import generated_results as generated
from tests.support.results.written_runs import HASHES, write_run

RATES, SEEDS = (6e-4, 3e-4), (1, 2, 3)
NOISE = (0.0031, -0.0042, 0.0017)
DEAD, UNDER_WAY = "e7m0-0.0006-2", "e4m3-0.0003-3"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    sweep = generated.new_sweep(root, "s")
    for rate in RATES:
        for seed, noise in zip(SEEDS, NOISE, strict=True):
            for format, lag in (("BF16", 0.0), ("E4M3", 0.004), ("E7M0", 0.2)):
                name = f"{format.lower()}-{rate:g}-{seed}"
                losses = {s: 5 - s / 50 + lag * s / 100 + noise * (s % 7 + lag * 9) for s in range(10, 101, 10)}
                config = {"format": format, "seed": seed, "learning_rate": rate, "max_steps": 100}
                more: dict[str, Any] = {}
                if name == DEAD:
                    losses = {step: loss + 1 for step, loss in losses.items() if step <= 50}
                    more = {"status": "collapsed", "verdict": Verdict(55, "stalled", "stall_rate", 1.0, 0.9)}
                if name == UNDER_WAY:
                    losses = {step: loss for step, loss in losses.items() if step <= 80}
                    more = {"status": None}
                info = HASHES | {"started": 4e9}  # in the future: the run under way is not taken for a dead one
                write_run(sweep, name, losses, config=config, loss=losses, info=info, **more)
    return root


@pytest.fixture(scope="module")
def gaps(root: Path) -> pd.DataFrame:
    """One row per run that is no baseline: format, rate, gap, step, whether it counts in the mean of its group."""
    runs = []
    for folder in sorted(path.parent for path in (root / "s").glob("*/run.json")):
        config = json.loads((folder / "run.json").read_text())["config"]
        end = folder / "end.json"
        parts = pd.concat(pd.read_parquet(part) for part in (folder / "steps").glob("part-*")).set_index("step")
        runs.append(
            {"run": folder.name, "format": config["format"], "seed": config["seed"], "rate": config["learning_rate"]}
            | {"counts": not end.exists() or json.loads(end.read_text())["status"] == "completed"}
            | {"loss": parts["validation_loss"].dropna()}
        )
    frame = pd.DataFrame(runs)
    common = min(loss.index.max() for loss in frame[frame.counts].loss)
    base = frame[frame.format == "BF16"].set_index(["seed", "rate"]).loss
    others = frame[frame.format != "BF16"].copy()
    others["step"] = [common if one.counts else one.loss.index.max() for one in others.itertuples()]
    others["gap"] = [one.loss[one.step] - base[one.seed, one.rate][one.step] for one in others.itertuples()]
    return others.set_index("run")


def board(app: AppTest) -> dict[str, str]:
    """Link of each row of the drawn table -> its text."""
    rows = parse(drawn(app)).one("tbody").all("tr")
    return {str(row.one("a").attributes["href"]): row.text for row in rows}


def test_gaps_of_runs_on_screen_are_those_of_the_parts(root: Path, gaps: pd.DataFrame) -> None:
    assert set(gaps.step) == {50, 80} and gaps.gap[DEAD] != gaps.gap[UNDER_WAY]
    app = show(root, "sweep", rows="run", columns=["run", "gap", "gap_step", "collapse_step"])
    shown = app.dataframe[0].value.set_index("Run")
    for name, one in gaps.iterrows():
        assert float(shown["Gap to BF16"][name]) == pytest.approx(one.gap, abs=1e-12)
        assert shown["At step"][name] == one.step
    assert shown["Collapse step"].dropna().to_dict() == {DEAD: 55}
    rows = board(app)
    for name, one in gaps.iterrows():
        said = next(text for link, text in rows.items() if f"run={name}" in link)
        assert f"{one.gap:+.3f} at step {one.step}" in said


def test_means_and_intervals_of_groups_on_screen_are_those_of_the_parts(root: Path, gaps: pd.DataFrame) -> None:
    app = show(root, "sweep", columns=["group", "learning_rate", "gap", "gap_low", "gap_high", "gap_step", "n"])
    assert not app.exception
    shown, rows = app.dataframe[0].value, board(app)
    for (format, rate), members in gaps.groupby(["format", "rate"]):
        counted = members[members.counts].gap
        low, high = scipy.stats.t.interval(0.95, len(counted) - 1, loc=counted.mean(), scale=scipy.stats.sem(counted))
        (one,) = (row for _, row in shown.iterrows() if format in row["Group"] and row["Learning rate"] == rate)
        found = [float(one[name]) for name in ("Gap to BF16", "Interval low", "Interval high")]
        assert found == pytest.approx([counted.mean(), low, high], abs=1e-9)
        assert (one["At step"], one["n"]) == (80, len(counted))
        text = next(text for link, text in rows.items() if f"group={format.lower()}-{rate:g}-1" in link)
        assert f"{counted.mean():+.3f} [{low:+.3f}, {high:+.3f}] at step 80" in text
        if len(counted) < len(members):
            assert "not as good as BF16: 1 of 3 collapsed" in text
        elif low > -0.01 and high < 0.01:
            assert "equivalent to BF16 within 0.01 nats" in text


def test_margin_in_the_link_decides_on_every_page_and_stays_in_its_links(root: Path, gaps: pd.DataFrame) -> None:
    spread = gaps[(gaps.format == "E4M3") & (gaps.rate == RATES[0])].gap
    low, high = scipy.stats.t.interval(0.95, 2, loc=spread.mean(), scale=scipy.stats.sem(spread))
    assert low > 0.0001 and high < 0.5
    for margin, word in (
        ("0.5", "equivalent to BF16 within 0.5 nats"),
        ("0.0001", "worse than BF16 by more than 0.0001 nats"),
    ):
        app = show(root, "sweep", margin=margin)
        text = next(text for link, text in board(app).items() if "group=e4m3-0.0006-1" in link)
        assert word in text and app.query_params["margin"] == margin
        assert all(f"margin={margin}" in link for link in board(app))
    assert "which is no positive number" in "\n".join(one.value for one in show(root, "sweep", margin="-1").caption)


def test_figures_are_read_on_a_scale_that_all_rows_share(root: Path, gaps: pd.DataFrame) -> None:
    """The distance of two marks is proportional to the difference of their gaps."""
    app = show(root, "sweep", rows="run")
    rows = parse(drawn(app)).one("tbody").all("tr")
    places = {}
    for row in rows:
        name = re.search(r"run=([^&]*)", str(row.one("a").attributes["href"]))[1]  # type: ignore[index]
        dots = re.findall(r"circle%20cx%3D%22([\d.]+)%22", str([image.attributes["src"] for image in row.all("img")]))
        if dots:
            places[name] = float(dots[0])
    assert len(places) == len(gaps) - 1, "a dead run has a figure and no mark"
    marked = sorted((gaps.gap[name], at) for name, at in places.items())
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marked) if b[0] - a[0] > 0.02]
    assert slopes and max(slopes) == pytest.approx(min(slopes), rel=0.01)
