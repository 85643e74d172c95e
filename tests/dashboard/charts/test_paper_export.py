"""A chart as SVG, PDF, CSV and LaTeX holds what the screen draws; every chart of the dashboard has these exports."""

from __future__ import annotations

import ast
import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest

from altgrad.compare import comparison, rescue_matrix
from altgrad.formats import SPLITS
from altgrad.show.drawn_curves import View, line
from altgrad.show.seed_bands import seed_bands
from dashboard.data.sweep_frame import csv_of
from dashboard.data.watched_sweep import WatchedSweep
from dashboard.figures.curve_figures import bands_figure, curves_figure
from dashboard.figures.format_figures import grid_figure, ulp_figure
from dashboard.figures.group_figures import learning_rate_figure, matrix_figure, survival_figure
from dashboard.figures.layer_heat_map import heat, heat_figure
from dashboard.paper.drawn_data import as_latex, drawn_data, latex
from dashboard.paper.vector_figure import Words, vector_figure
from tests.support.results import generated_results as generated

DASHBOARD = Path(__file__).parents[3] / "dashboard"
WORDS = Words(r"A $title$ & more <b>", "n = 3 seeds", "Caption with 95 % and \\input{x}.")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, go.Figure]:
    sweep = WatchedSweep(generated.mixed_sweep(tmp_path_factory.mktemp("results")))
    sweep.refresh()
    rows, runs = comparison(sweep.runs), {run.name: run for run in sweep.runs}
    view = View("loss", half_life=2.0)
    lines = [one for row in rows if (one := line(row, runs[row.run], view)) is not None]
    layers = heat(next(run for run in sweep.runs if run.verdict is not None).table("layers"), "stall_rate", "weight")
    assert layers is not None
    return {
        "curves": curves_figure(lines, view),
        "log": curves_figure(lines, view, log_x=True, log_y=True),
        "bands": bands_figure(seed_bands(rows, runs, view), lines, view, False, False),
        "survival": survival_figure(rows),
        "rates": learning_rate_figure(rows),
        "matrix": matrix_figure(rescue_matrix(rows)),
        "ulps": ulp_figure(SPLITS),
        "grids": grid_figure(SPLITS),
        "heat": heat_figure(layers, "stall_rate", 80),
    }


def read(figure: go.Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(drawn_data(figure)))))


def numbers(values: object) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["curves", "log", "bands", "survival", "rates", "ulps"])
def test_the_csv_has_every_drawn_point_in_order_to_the_last_digit(figures: dict[str, go.Figure], name: str) -> None:
    figure = figures[name]
    rows = read(figure)
    x, y = (next(iter(getattr(figure.layout, axis).title.text for _ in (0,))) for axis in ("xaxis", "yaxis"))
    drawn = [(trace.x, trace.y) for trace in figure.data]
    np.testing.assert_array_equal([float(row[x]) for row in rows], np.concatenate([numbers(one) for one, _ in drawn]))
    np.testing.assert_array_equal(
        [float(row[y]) if row[y] else math.nan for row in rows], np.concatenate([numbers(one) for _, one in drawn])
    )
    assert all(row["Series"] and "{" not in row["Series"] for row in rows), "a series without name"


def test_the_csv_of_a_heat_map_has_its_cells_and_that_of_a_matrix_its_texts(figures: dict[str, go.Figure]) -> None:
    cells = figures["heat"].data[0]
    wanted = {(layer, step): cells.z[i][j] for i, layer in enumerate(cells.y) for j, step in enumerate(cells.x)}
    found = {(row["Layer"], int(row["Step"])): float(row["Value"]) for row in read(figures["heat"])}
    assert found == wanted
    texts = {(row["Format"], row["Intervention"]): row["Text"] for row in read(figures["matrix"])}
    assert texts["E7M0", "clip"] == "0 of 3 collapse at 80"
    assert len(texts) == len(figures["matrix"].data[0].x)


def paths(svg: bytes, gid: str) -> Iterator[np.ndarray]:
    """The points of the paths of a part of the drawing."""
    group = next(node for node in ElementTree.fromstring(svg).iter(f"{SVG}g") if node.get("id") == gid)
    for path in group.iter(f"{SVG}path"):
        pairs = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d", ""))
        yield np.array(pairs, np.float64)


@pytest.mark.parametrize("name", ["curves", "log", "ulps"])
def test_the_picture_has_every_point_where_the_axes_put_it(figures: dict[str, go.Figure], name: str) -> None:
    figure = figures[name]
    svg = vector_figure(figure, WORDS, "svg")
    scales = [np.log10 if axis.type == "log" else np.asarray for axis in (figure.layout.xaxis, figure.layout.yaxis)]
    wanted, drawn = [], []
    for place, trace in enumerate(figure.data):
        if "lines" not in trace.mode:
            continue
        y = np.array(numbers(trace.y))
        points = np.column_stack([scales[0](numbers(trace.x)), scales[1](y)])[np.isfinite(y)]
        (path,) = paths(svg, f"series-{place}")
        assert len(path) == len(points), "a point was thinned, or a gap bridged"
        wanted.append(points)
        drawn.append(path)
    ours, theirs = np.concatenate(wanted), np.concatenate(drawn)
    for axis in (0, 1):
        slope, offset = np.polyfit(ours[:, axis], theirs[:, axis], 1)
        np.testing.assert_allclose(theirs[:, axis], slope * ours[:, axis] + offset, atol=2e-3)
        assert (slope > 0) == (axis == 0), "SVG counts y downwards"


def test_a_gap_of_the_line_is_a_gap_of_the_picture(figures: dict[str, go.Figure]) -> None:
    svg = vector_figure(figures["curves"], WORDS, "svg").decode()
    broken = [place for place, trace in enumerate(figures["curves"].data) if "lines" in trace.mode
              and np.isnan(inner(numbers(trace.y))).any()]  # fmt: skip
    assert broken, "the sweep has runs with NaN in the middle"
    for place in broken:
        path = svg.partition(f'id="series-{place}"')[2].partition("</g>")[0]
        assert path.count("M ") > 1


def inner(values: list[float]) -> np.ndarray:
    finite = np.flatnonzero(np.isfinite(values))
    return np.array(values)[finite[0] : finite[-1]]


def test_title_number_and_caption_are_written_as_they_are_and_the_bytes_repeat(figures: dict[str, go.Figure]) -> None:
    figure = figures["survival"]
    svg = vector_figure(figure, WORDS, "svg")
    said = " ".join(node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text"))
    assert WORDS.headline in said and WORDS.caption in said and "Runs not collapsed" in said
    assert svg == vector_figure(figure, WORDS, "svg")
    pdf = vector_figure(figure, WORDS, "pdf")
    assert pdf.startswith(b"%PDF") and pdf == vector_figure(figure, WORDS, "pdf")


@pytest.mark.parametrize("name", ["matrix", "curves"])
def test_the_latex_table_has_a_row_per_point_and_no_command_of_a_name(figures: dict[str, go.Figure], name: str) -> None:
    table = latex(drawn_data(figures[name]), WORDS.whole)
    body = table.partition(r"\midrule")[2].replace(r"\endhead", "").partition(r"\end{")[0]
    rows = [row for row in body.splitlines() if row.endswith(r"\\")]
    assert len(rows) == len(drawn_data(figures[name]))
    columns = re.search(r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}", table)
    assert columns and all(len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1 for row in rows)
    assert r"\input" not in table and r"\textbackslash{}input\{x\}" in table and "95 \\%" in table
    assert {"toprule", "midrule", "bottomrule"} <= set(re.findall(r"\\(\w+)", table))


def test_every_sign_that_latex_reads_as_a_command_is_printed() -> None:
    assert as_latex("50 % of $x_1$ & {a}^b #2 ~ \\c") == (
        r"50 \% of \$x\_1\$ \& \{a\}\textasciicircum{}b \#2 \textasciitilde{} \textbackslash{}c"
    )


def test_every_chart_is_drawn_by_the_owner_of_the_exports() -> None:
    callers = {
        str(file.relative_to(DASHBOARD))
        for file in DASHBOARD.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "plotly_chart"
    }
    assert callers == {"paper/exported_chart.py"}
