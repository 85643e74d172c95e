"""Liveness: every metric is really measured.  What every config field decides: test_config_liveness.py."""

import math

import pytest
import torch

from altgrad.metrics import METRICS, columns
from altgrad.results import read_run
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import MICRO


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Short runs that between them show every metric moving."""
    folder = tmp_path_factory.mktemp("liveness")
    config = MICRO.altered(max_steps=24, learning_rate=3e-3, eval_interval=8, diagnostic_interval=4)
    first = run_format_experiment(config.altered(format="E4M3", scaling="delayed"), folder / "masters")
    losses = read_run(first.folder).table("steps", ["loss"])
    baseline = dict(zip(losses["step"].to_pylist(), losses["loss"].to_pylist(), strict=True))
    second = run_format_experiment(
        config.altered(format="E4M3", master_weights=False, learning_rate=0.03), folder / "stored", baseline=baseline
    )
    third = run_format_experiment(config.altered(format="E0M7", scaling="none"), folder / "unscaled")
    fourth = run_format_experiment(
        config.altered(format="E2M5", learning_rate=1e30, gradient_clip=0.0, stop_on_collapse=False),
        folder / "explodes",
    )
    fifth = run_format_experiment(
        config.altered(format="E4M3", master_weights=False, learning_rate=0.03, weight_decay=2.0), folder / "decays"
    )
    sixth = run_format_experiment(  # at a loss of NaN both the emergency shift and the ladder shift, in one step
        config.altered(
            format="E4M3", learning_rate=1e30, gradient_clip=0.0, stop_on_collapse=False, warmup_steps=0,
            enable_emergency_shift=True, enable_rescue_ladder=True, rescue_rungs=["rate"], rescue_window=1,
        ),
        folder / "rescued",
    )  # fmt: skip
    runs = [read_run(result.folder) for result in (first, second, third, fourth, fifth, sixth)]
    return {name: [run.table(name).to_pandas() for run in runs] for name in ("steps", "layers")}


@pytest.mark.parametrize("level", ["step", "layer"])
def test_every_metric_is_filled_finite_and_takes_more_than_one_value(tables, level):
    dead = []
    for name in columns(level):
        values = [v for table in tables["steps" if level == "step" else "layers"] for v in table[name].dropna()]
        finite = {value for value in values if math.isfinite(value)}
        if len(finite) < 2:
            dead.append((name, sorted(finite)[:3], len(values)))
    if not torch.cuda.is_available():  # then these must be absent: a zero would say that a GPU was idle
        absent = [(name, [], 0) for name in columns(level) if name.startswith("gpu_")]
        assert [entry for entry in dead if entry[0].startswith("gpu_")] == absent
        dead = [entry for entry in dead if entry not in absent]
    assert not dead


def test_values_lie_where_their_unit_allows(tables):
    for name, metric in METRICS.items():
        tables_of = [t for level in metric.levels for t in tables["steps" if level == "step" else "layers"]]
        for table in tables_of:
            values = table[name].dropna()
            finite = values[values.map(math.isfinite)]
            if metric.unit == "share":
                assert ((finite >= 0) & (finite <= 1)).all(), name
            if metric.unit in ("r", "cos"):
                assert ((finite >= -1.0001) & (finite <= 1.0001)).all(), name
