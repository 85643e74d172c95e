"""A sweep of branches: which trials it has, and what it refuses."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from altgrad.config.train_config import ConfigError
from altgrad.experiment.checkpoints import checkpointing
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import SMALL
from tests.support.runs.sweep_plans import CPU_BOX, planned
from tune.plan.options import SweepError, parse_options
from tune.plan.plan_table import show_plan
from tune.plan.resources.machine import share_out
from tune.plan.trials import plan_sweep


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder.at(tmp_path_factory.mktemp("sweep") / "trunk")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpointing, "delete_old", lambda *_, **__: None)
        run_format_experiment(SMALL.altered(learning_rate=1e-3, weight_decay=0.2), folder)
    return folder


def test_a_trunk_branches_into_formats_and_recipes_beside_a_branch_of_its_own(trunk):
    trials = planned(
        "--branch-from", str(trunk), "--at", "5", "--formats", "E4M3", "E7M0", "--set", "rounding=stochastic"
    )
    assert trials.keys() == {"e4m3-s42", "e7m0-s42", "bf16_baseline-s42"}
    for name, trial in trials.items():
        config = trial.config
        assert config.branch_from == {"run": str(trunk), "step": 5}
        assert (config.learning_rate, config.weight_decay, config.n_layer, config.max_steps) == (1e-3, 0.2, 1, 12)
        assert config.rounding == ("nearest" if name.startswith("bf16") else "stochastic")
    assert trials["e7m0-s42"].config.format == "E7M0" and trials["e7m0-s42"].baseline == "bf16_baseline-s42"
    recipes = planned("--branch-from", str(trunk), "--recipes", "mxfp8", "te_delayed", "--max-steps", "20")
    assert recipes["te_delayed-s42"].config.scaling == "delayed"
    assert recipes["mxfp8-s42"].config.branch_from == {"run": str(trunk), "step": 12}


@pytest.mark.parametrize("words", [("--branch-from", "TRUNK", "--at", "5"), ("--from", "TRUNK@5")])
def test_the_plan_says_where_the_trials_start(words, trunk):
    said = io.StringIO()
    options = parse_options([str(trunk).join(word.split("TRUNK")) for word in (*words, "--formats", "E4M3")])
    plan = plan_sweep(options, CPU_BOX)
    show_plan(Console(file=said, width=300), plan, share_out(options, CPU_BOX, plan.trials))
    where = f"step 5 of {trunk}" if "--at" in words else f"{trunk}@5"
    assert f"starts from {where}," in " ".join(said.getvalue().split())


WRONG = {
    "--at alone": (("--at", "5", "--formats", "E4M3"), "--at: the step at which --branch-from RUN_DIR branches"),
    "no checkpoint": (("--branch-from", "TRUNK", "--at", "6"), "no checkpoint of step 6; there: 5, 10, 12"),
    "seeds": (("--branch-from", "TRUNK", "--at", "5", "--seeds", "2"), "a branch has the seed of its parent"),
    "model": (("--branch-from", "TRUNK", "--at", "5", "--model", "tiny"), "model=tiny: a branch of"),
    "no step": (("--branch-from", "TRUNK"), "max_steps=12 and a branch from step 12 of"),
    "a step behind": (("--branch-from", "TRUNK", "--at", "10", "--max-steps", "10"), "no step is left; branch at an"),
    "no run": (("--branch-from", "/nowhere"), "no run.json in it; give the folder of a run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_sweep_of_branches_cannot_do_is_one_line(case, trunk):
    words, said = WRONG[case]
    with pytest.raises((SweepError, ConfigError)) as caught:
        planned(*(str(trunk) if word == "TRUNK" else word for word in words))
    assert said in str(caught.value).replace("'", "") and "\n" not in str(caught.value)
