"""What the metrics' table says of cadence and switches, held against runs that were really trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from altgrad.config.train_config import TrainConfig
from altgrad.metrics import METRICS, columns
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import SMALL

STEPS, REPORT, EVAL, DIAGNOSE = 12, 5, 4, 3
WHEN: Mapping[str, set[int]] = {
    "step": set(range(1, STEPS + 1)),
    "report": {5, 10},
    "eval_interval": {4, 8, 12},
    "diagnostic_interval": {3, 6, 9, 12},
}
SWITCHES = {"log_stiffness", "log_grid_alignment", "log_ulp", "use_shadow"}


def steps_measured(folder: Path, **fields: Any) -> dict[str, set[int]]:
    """By metric the steps at which a short run of stored E4M3 weights has a value for the whole model."""
    off = dict.fromkeys(SWITCHES, False)
    config = SMALL.altered(
        format="E4M3", master_weights=False, learning_rate=3e-2, max_steps=STEPS, eval_interval=EVAL,
        diagnostic_interval=DIAGNOSE, enable_rescue_ladder=True, rescue_rungs=["rate"], rescue_margin=1e-3,
        **(off | fields),
    )  # fmt: skip
    curve = dict.fromkeys(range(1, STEPS + 1), 2.0)
    run_format_experiment(config, folder, report_interval=REPORT, baseline=curve)
    table = read_run(Folder.at(folder)).table("steps").to_pandas()
    return {name: set(table["step"][table[name].notna()]) for name in columns("step")}


def test_each_metric_is_measured_when_the_table_says(tmp_path: Path) -> None:
    found = steps_measured(tmp_path / "all", **dict.fromkeys(SWITCHES, True))
    for name, steps in found.items():
        assert steps <= WHEN[METRICS[name].every], name
        if not name.startswith("gpu_"):
            assert steps, name


def test_a_switch_measures_exactly_the_metrics_that_name_it(tmp_path: Path) -> None:
    assert {metric.switch for metric in METRICS.values()} - {None} == SWITCHES
    without = steps_measured(tmp_path / "none")
    for switch in SWITCHES:
        found = steps_measured(tmp_path / switch, **{switch: True})
        gained = {name for name in found if found[name] and not without[name]}
        assert gained == {name for name in columns("step") if METRICS[name].switch == switch}


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_what_a_metric_names_of_the_config_is_a_field_that_measures(metric: Any) -> None:
    for field in {metric.switch, metric.every} - {None, "step", "report"}:
        assert TrainConfig.traits()[field].kind == "measuring"
