"""The curves page draws what pandas and scipy compute from the parquet parts alone: with a dead seed, NaN in the middle
of a curve, and two learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tests.support.dashboard_pages import show
from tests.support.drawn_figures import figures, numbers
from tests.support.results import generated_results as generated

STEPS, DIED = 150, 25  # so long that the automatic half-life is 1
RATES = (6e-4, 3e-4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    sweep = generated.new_sweep(root, "s")
    for rate in RATES:
        for format in ("BF16", "E4M3"):
            for seed in (1, 2, 3):
                odd = format == "E4M3" and seed == 2
                run = generated.InventedRun(
                    format,
                    seed=seed,
                    steps=STEPS,
                    learning_rate=rate,
                    nan_span=(20, 23) if odd and rate == RATES[0] else None,
                    eval_interval=20,
                    diagnostic_interval=10,
                )
                if odd and rate == RATES[1]:
                    generated.write_run(sweep, run, "collapsed", until=DIED, verdict=generated.STALLED)
                else:
                    generated.write_run(sweep, run)
    return root


def losses(root: Path, format: str, rate: float) -> pd.DataFrame:
    """Steps x seeds, from the parts."""
    found = {
        seed: pd.concat(
            pd.read_parquet(part)
            for part in (root / "s" / f"{format.lower()}_lr{rate:g}_s{seed}" / "steps").glob("part-*")
        ).set_index("step")["loss"]
        for seed in (1, 2, 3)
    }
    return pd.DataFrame(found).sort_index()


def smoothed(frame: pd.DataFrame, half_life: float) -> pd.DataFrame:
    return frame.ewm(halflife=half_life, ignore_na=True).mean().where(frame.notna()) if half_life else frame


def expected(frame: pd.DataFrame, spread: str) -> pd.DataFrame:
    """Mean, low and high over the seeds at the steps that all of them reached, NaN where one of them is."""
    ended = min(frame[seed].last_valid_index() for seed in frame)
    frame = frame.loc[:ended]
    mean, skip = frame.mean(axis=1, skipna=False), {"axis": 1, "skipna": False}
    if spread == "range":
        return pd.DataFrame({"mean": mean, "low": frame.min(**skip), "high": frame.max(**skip)})
    low, high = scipy.stats.t.interval(0.95, len(frame.columns) - 1, mean, scipy.stats.sem(frame, axis=1))
    return pd.DataFrame({"mean": mean, "low": low, "high": high})


def drawn_bands(figure: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """First run of the group -> the mean's line and the edges of the shaded areas that belong to it."""
    found = {}
    for trace in figure["data"]:
        if trace.get("fill") or not trace.get("name"):
            continue
        edges = [numbers(other["x"]).reshape(2, -1) for other in figure["data"] if _fills(other, trace)]
        heights = [numbers(other["y"]).reshape(2, -1) for other in figure["data"] if _fills(other, trace)]
        frame = pd.DataFrame({"mean": numbers(trace["y"])}, index=numbers(trace["x"]).astype(int))
        for place, column in ((0, "high"), (1, "low")):
            steps = np.concatenate([edge[place][:: 1 - 2 * place] for edge in edges])
            values = np.concatenate([height[place][:: 1 - 2 * place] for height in heights])
            frame[column] = pd.Series(values, steps.astype(int))
        assert trace["name"].endswith("(n = 3)")
        found[trace["legendgroup"]] = frame[["mean", "low", "high"]]
    return found


def _fills(trace: dict[str, Any], line: dict[str, Any]) -> bool:
    return bool(trace.get("fill")) and trace["legendgroup"] == line["legendgroup"]


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize(("spread", "half_life"), [("interval", None), ("interval", 0), ("range", 7)])
def test_bands_are_those_of_pandas_and_scipy(root: Path, spread: str, half_life: int | None, difference: bool) -> None:
    query = {"layout": "bands", "band": spread} | ({"difference": "true"} if difference else {})
    app = show(root, "curves", **query | ({} if half_life is None else {"smoothing": str(half_life)}))
    assert not app.exception
    found = drawn_bands(figures(app)[0])
    for rate in RATES:
        for format in ("E4M3",) if difference else ("BF16", "E4M3"):
            own = losses(root, format, rate)
            own = own - losses(root, "BF16", rate) if difference else own
            want = expected(smoothed(own, 1 if half_life is None else half_life), spread)
            band = found[f"{format.lower()}_lr{rate:g}_s1"]
            pd.testing.assert_frame_equal(band, want, check_names=False, check_index_type=False, rtol=1e-12)
            assert len(want) == (DIED if (format, rate) == ("E4M3", RATES[1]) else STEPS)


def test_lines_are_the_raw_losses_faint_under_pandas_moving_average_and_deaths_lie_on_them(root: Path) -> None:
    app = show(root, "curves", smoothing="5")
    (figure,) = figures(app)
    for format in ("BF16", "E4M3"):
        for rate in RATES:
            own = losses(root, format, rate)
            for seed in own:
                run = f"{format.lower()}_lr{rate:g}_s{seed}"
                (at,) = (
                    at for at, trace in enumerate(figure["data"]) if f"<extra>{run}<" in trace.get("hovertemplate", "")
                )
                faint, strong = figure["data"][at - 1], figure["data"][at]
                assert faint["opacity"] < 0.5 and "opacity" not in strong, run
                until = DIED if seed == 2 and (format, rate) == ("E4M3", RATES[1]) else STEPS
                np.testing.assert_array_equal(numbers(faint["y"]), own[seed].loc[:until])
                np.testing.assert_allclose(numbers(strong["y"]), smoothed(own[[seed]], 5)[seed].loc[:until], rtol=1e-12)
    (cross,) = (trace for trace in figure["data"] if trace.get("text") and "collapsed (stalled)" in trace["text"][0])
    dead = smoothed(losses(root, "E4M3", RATES[1]), 5)[2].dropna()
    assert (numbers(cross["x"]), numbers(cross["y"])) == (DIED, pytest.approx(dead.iloc[-1]))
    assert "1 of 12" in next(one.value for one in app.caption if one.value.startswith("Cross"))
