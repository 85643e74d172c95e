"""Which runs are one group: those that differ in the seed only."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from altgrad.compare import (
    by_group,
    comparison,
    rescue_matrix,
)
from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import HASHES, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


VALUES: dict[str, list[Any]] = {
    "format": ["E4M3", "E5M2"], "seed": [1, 2, 3], "learning_rate": [3e-4, 1e-2, 0.30000000000000004, 0.3],
    "weight_decay": [0.1, 0.0], "master_weights": [True, False], "rounding": ["nearest", "stochastic"],
    "gradient_format": [None, "E5M2"], "scaling": ["dynamic", "none"], "n_embd": [None, 32], "max_steps": [100, 200],
    "partition_clip_base": [1.0, 2.0], "enable_partition_clipping": [True, False], "beta2": [0.95, 0.99],
    "layer_formats": [{}, {"lm_head": "BF16"}], "stop_on_collapse": [True, False], "eval_interval": [50, 100],
}  # fmt: skip


@pytest.mark.parametrize("draw", range(8))
def test_two_runs_are_one_group_exactly_where_they_differ_in_the_seed_only(tmp_path: Path, draw: int) -> None:
    rng = random.Random(draw)
    sweep = Folder.at(tmp_path)
    varied = ["seed", *rng.sample(sorted(VALUES.keys() - {"seed"}), 4)]
    configs = {}
    for number in range(30):
        config = {name: rng.choice(VALUES[name]) for name in varied}
        intervention = rng.choice(["none", "clip"]) if config.get("enable_partition_clipping") else "none"
        write_run(sweep, f"r{number}", {1: 2.0}, config=config, intervention=intervention)
        configs[f"r{number}"] = repr(
            (intervention, sorted((name, value) for name, value in config.items() if name != "seed"))
        )
    rows = comparison(list_runs(sweep)[0])
    for one, other in itertools.combinations(rows, 2):
        same = configs[one.run] == configs[other.run]
        assert (one.group == other.group) == same, (configs[one.run], configs[other.run])
        assert (one.group_label == other.group_label) == same, "a label that two groups share joins them in a legend"
    assert len(rescue_matrix(rows)) == len(by_group(rows)) == len(set(configs.values()))


def test_a_field_that_differs_nowhere_is_in_no_label(sweep: Folder) -> None:
    write_run(sweep, "a", {}, config={"format": "E4M3", "learning_rate": 0.01})
    write_run(sweep, "b", {}, config={"format": "E5M2", "learning_rate": 0.01})
    assert {row.group_label for row in comparison(list_runs(sweep)[0])} == {"E4M3", "E5M2"}


def test_models_given_to_the_runner_under_one_config_are_groups_of_their_own(sweep: Folder) -> None:
    for seed, parameters in ((1, 1000), (2, 1000), (1, 2000)):
        write_run(sweep, f"r{seed}-{parameters}", {}, config={"seed": seed}, info=HASHES | {"parameters": parameters})
    write_run(sweep, "died-before-it-said", {}, config={"seed": 3}, status="failed")
    groups = [sorted(row.run for row in members) for members in by_group(comparison(list_runs(sweep)[0])).values()]
    assert sorted(groups) == [["died-before-it-said", "r1-1000", "r2-1000"], ["r1-2000"]]


@pytest.mark.parametrize(("name", "values"), [
    ("learning_rate", [3e-4, 3.0001e-4, 6e-4]), ("weight_decay", [0.1, 0.1001]), ("beta2", [0.95, 0.950001]),
    ("max_steps", [10_000, 10_001]), ("data", ["/data/a", "/data/b"]),
])  # fmt: skip
def test_groups_whose_values_differ_by_a_hair_have_names_of_their_own(
    sweep: Folder, name: str, values: list[Any]
) -> None:
    for number, value in enumerate(values):
        write_run(sweep, f"r{number}", {1: 2.0}, config={name: value})
    rows = comparison(list_runs(sweep)[0])
    assert len({row.group for row in rows}) == len({row.group_label for row in rows}) == len(values)
    assert all(row.differs for row in rows)
