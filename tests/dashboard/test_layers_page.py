"""The layers page: what collapsed first, constant maps folded, two runs on one scale, and who crossed a limit first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from altgrad.results import SCHEMAS
from dashboard.data.layer_order import first_beyond
from dashboard.figures.layer_heat_map import heat, heat_figure, shared_scale
from tests.support.dashboard_pages import show, words
from tests.support.drawn_figures import figures, numbers
from tests.support.results import generated_results as generated

SHORT: dict[str, Any] = {"steps": 100, "eval_interval": 20, "diagnostic_interval": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    sweep = generated.new_sweep(root, "s")
    generated.write_run(sweep, generated.InventedRun("BF16", seed=1, **SHORT))
    dead = generated.InventedRun("E7M0", seed=1, stalls_from=40, **SHORT)
    generated.write_run(sweep, dead, "collapsed", until=88, verdict=generated.STALLED)
    return root


def stored(root: Path, run: str) -> pd.DataFrame:
    """The layers table of a run at the weights, from its parts."""
    parts = (root / "s" / run / "layers").glob("part-*")
    table = pd.concat(pd.read_parquet(part) for part in parts)
    return table[table["site"] == "weight"].sort_values("step", kind="stable")


def layers_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"attempt": 0, "site": "weight", **row} for row in rows], schema=SCHEMAS["layers"])


def test_heat_map_has_each_value_in_its_place() -> None:
    table = layers_table(
        [
            {"step": 10, "layer": "a", "stall_rate": 0.1},
            {"step": 10, "layer": "b", "stall_rate": float("nan")},
            {"step": 20, "layer": "b", "stall_rate": 0.4},
            {"step": 20, "layer": "a", "site": "gradient", "stall_rate": 0.9},
            {"step": 30, "layer": "a", "overflow_rate": 0.5},
        ]
    )
    found = heat(table, "stall_rate", "weight")
    assert found is not None
    assert (found.layers, found.steps.tolist()) == (["a", "b"], [10, 20])
    np.testing.assert_array_equal(found.values, [[0.1, np.nan], [np.nan, 0.4]])
    np.testing.assert_array_equal(found.non_finite, [[False, False], [True, False]])
    figure = heat_figure(found, "stall_rate", collapse_step=15)
    assert figure.layout.shapes[-1].x0 == 15
    crosses = figure.data[1]
    assert (list(crosses.x), list(crosses.y)) == ([10], ["b"])
    assert heat(table, "stable_rank", "weight") is None


def test_it_opens_on_the_run_that_collapsed_with_its_verdict_drawn_through_every_map(root: Path) -> None:
    app = show(root, "layers")
    assert app.query_params["run"] in ("e7m0_lr0.0006_s1", ["e7m0_lr0.0006_s1"])
    maps = figures(app)
    assert maps
    for figure in maps:
        edge, line = figure["layout"]["shapes"]
        assert all((one["x0"], one["x1"], one["yref"]) == (80, 80, "paper") for one in (edge, line))


def test_a_metric_with_one_value_everywhere_is_a_line_of_text(root: Path) -> None:
    app = show(root, "layers", metrics=["saturation_rate", "stall_rate"])
    assert [figure["data"][0]["type"] for figure in figures(app)] == ["heatmap"]
    assert "The same at every layer and step, so not drawn: saturation rate 0.001." in words(app).replace("\\", "")


def test_two_runs_are_side_by_side_on_one_scale_with_the_values_of_their_parts(root: Path) -> None:
    app = show(root, "layers", beside="bf16_lr0.0006_s1", metrics="stable_rank")
    one, other = figures(app)
    both = [stored(root, run) for run in ("e7m0_lr0.0006_s1", "bf16_lr0.0006_s1")]
    ends = (min(t["stable_rank"].min() for t in both), max(t["stable_rank"].max() for t in both))
    for figure, table in zip((one, other), both, strict=True):
        drawn = figure["data"][0]
        assert (drawn["zmin"], drawn["zmax"]) == ends
        wanted = table.pivot(index="layer", columns="step", values="stable_rank").loc[list(drawn["y"])]
        shown = np.array(numbers(drawn["z"])).reshape(wanted.shape)
        np.testing.assert_array_equal(shown, wanted.to_numpy())
        assert numbers(drawn["x"]).tolist() == wanted.columns.tolist()
    assert one["layout"]["xaxis"]["range"] == other["layout"]["xaxis"]["range"] == [5, 105]
    assert one["layout"]["shapes"] and not other["layout"].get("shapes")


def test_shares_of_two_runs_have_one_scale_although_one_is_small(root: Path) -> None:
    small = heat(layers_table([{"step": 1, "layer": "a", "stall_rate": 0.1}]), "stall_rate", "weight")
    large = heat(layers_table([{"step": 1, "layer": "a", "stall_rate": 0.9}]), "stall_rate", "weight")
    assert small is not None and large is not None
    assert shared_scale([small], "stall_rate") == (0, 0.1) and shared_scale([small, large], "stall_rate") == (0, 1)


def test_a_verdict_after_the_last_measurement_is_inside_the_map() -> None:
    rows = [{"step": step, "layer": "a", "stall_rate": step / 100} for step in (10, 20, 30)]
    data = heat(layers_table(rows), "stall_rate", "weight")
    assert data is not None
    low, high = heat_figure(data, "stall_rate", 47).layout.xaxis.range
    assert low <= 5 and high > 47
    assert heat_figure(data, "stall_rate", 25).layout.xaxis.range is None


@pytest.mark.parametrize(("way", "limit"), [("above", 0.5), ("below", 0.95), ("above", 2.0)])
def test_the_first_layer_and_step_beyond_a_limit_are_those_of_pandas(root: Path, way: str, limit: float) -> None:
    query = {"crossing": "stall_rate", "way": way, "limit_stall_rate": str(limit)}
    app = show(root, "layers", **query)
    table = stored(root, "e7m0_lr0.0006_s1")
    beyond = table[table["stall_rate"] > limit if way == "above" else table["stall_rate"] < limit]
    wanted = beyond.groupby("layer").first()[["step", "stall_rate"]]
    frames = [frame.value for frame in app.dataframe if list(frame.value.columns) == ["Step", "Layer", "Value"]]
    if wanted.empty:
        assert not frames and "at no layer and step stall rate exceeded 2" in words(app).replace("\\", "")
        return
    (frame,) = frames
    got = frame.set_index("Layer").sort_index()
    assert (
        got["Step"].to_dict() == wanted["step"].to_dict() and got["Value"].to_dict() == wanted["stall_rate"].to_dict()
    )
    assert frame["Step"].is_monotonic_increasing
    assert f"**{frame['Layer'][0]}**, step **{frame['Step'][0]}**" in words(app).replace("\\", "")


def test_nan_is_beyond_any_limit_and_comes_first_of_its_step() -> None:
    rows = [
        {"step": 1, "layer": "a", "amax": 1.0},
        {"step": 1, "layer": "b", "amax": None},
        {"step": 2, "layer": "a", "amax": 9.0},
        {"step": 2, "layer": "b", "amax": float("nan")},
        {"step": 2, "layer": "c", "amax": 10.0},
    ]
    for above, names in ((True, ["b", "c", "a"]), (False, ["a", "b"])):
        found = first_beyond(layers_table(rows), "amax", 5.0, above)
        assert [one.layer for one in found] == names


def test_amax_and_scale_of_each_layer_are_columns_at_the_chosen_step(root: Path) -> None:
    app = show(root, "layers", at="40", metrics="stall_rate")
    shown = app.table[-1].value
    table = stored(root, "e7m0_lr0.0006_s1").query("step == 40")
    assert shown.columns.tolist() == ["Layer", "Largest magnitude", "Scale", "Stall rate (share)"]
    assert [name.replace("\\", "") for name in shown["Layer"]] == table["layer"].tolist()
    for head, metric in {"Largest magnitude": "amax", "Scale": "scale", "Stall rate (share)": "stall_rate"}.items():
        assert shown[head].astype(float).tolist() == pytest.approx(table[metric].tolist(), rel=1e-3), head
