"""The card of a collapsed run: evidence of the same seed, weights and batches, and a command that plans its config."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from altgrad.config.shipped_configs import CONFIGS
from altgrad.config.train_config import TrainConfig, load_config
from altgrad.report.advising.sweep_evidence import happened, survivor_sentence, survivors_like, sweep_command
from altgrad.results import Verdict
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import rows_of, write_run
from tests.support.runs.sweep_plans import planned

HASHES = {"initial_weights_hash": "aa", "batches_hash": "bb", "vocabulary": 96, "parameters": 10}
UNPLANNED = TrainConfig.of_kind("running", "planning", "judging") | {"model", "data"}


def test_survivors_are_like_the_dead_run_but_for_what_is_named(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path)
    stored = {"format": "E7M0", "master_weights": False, "seed": 1}
    runs: dict[str, tuple[dict[str, Any], float]] = {
        "bf16": ({"seed": 1}, 2.0),
        "master": ({"format": "E7M0", "seed": 1}, 2.002),
        "stochastic": (stored | {"update_rounding": "stochastic"}, 2.1),
        "both": ({"format": "E7M0", "seed": 1, "rounding": "stochastic"}, 2.001),
        "other seed": ({"format": "E7M0", "seed": 2}, 1.0),
        "other format": (stored | {"format": "E4M3"}, 1.0),
    }
    for name, (config, loss) in runs.items():
        write_run(sweep, name.replace(" ", "_"), {100: loss}, config=config, info=HASHES)
    write_run(sweep, "other_weights", {100: 1.0}, config={"format": "E7M0", "seed": 1},
              info=HASHES | {"initial_weights_hash": "cc"})  # fmt: skip
    write_run(sweep, "dead", {50: 4.0}, config=stored, info=HASHES, status="collapsed",
              verdict=Verdict(60, "stalled", "loss", 1.0, 2.0))  # fmt: skip
    write_run(sweep, "also_dead", {50: 4.0}, config=stored | {"scaling": "none"}, info=HASHES, status="collapsed",
              verdict=Verdict(60, "stalled", "loss", 1.0, 2.0))  # fmt: skip
    rows = rows_of(sweep)
    found = survivors_like(rows["dead"], rows.values())
    assert [(other.run, differs) for other, differs in found] == [
        ("master", ("master weights vs stored",)),
        ("stochastic", ("stochastic update",)),
        ("both", ("stochastic GEMM", "master weights vs stored")),
    ]
    assert survivor_sentence(*found[0]) == ("E7M0 completed, with master weights vs stored: gap +0.0020 at step 100")
    assert happened(rows["dead"]) == "E7M0 (stored) froze at step 60 of 500."


@pytest.mark.parametrize("file", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_the_command_plans_the_config_with_its_change(file: str) -> None:
    config = load_config(CONFIGS / f"{file}.yaml", learning_rate=1e-3, max_steps=77)
    program, command, *words = shlex.split(sweep_command(config, {"weight_decay": 0.25}))
    assert (program, command) == ("altgrad", "sweep")
    trial = next(t for t in planned(*words, "--model", "tiny").values() if t.config.format == config.format)
    wanted = config.altered(weight_decay=0.25).model_dump(exclude=set(UNPLANNED))
    assert trial.config.model_dump(exclude=set(UNPLANNED)) == wanted
