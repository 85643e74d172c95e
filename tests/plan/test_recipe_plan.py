"""Published recipes in a sweep's plan, on the terminal and in the documents."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.config.published import published_names
from altgrad.config.train_config import ConfigError, TrainConfig
from altgrad.show import recipe_tables
from tune.plan.options import SweepError, parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trial import SweepPlan, Trial
from tune.plan.trials import plan_sweep

ROOT = Path(__file__).parents[2]
CPU_BOX = Machine(cpus=2, gpus=0, gpu_note="no CUDA GPU found")


def plan(*arguments: str) -> SweepPlan:
    return plan_sweep(parse_options(arguments), CPU_BOX)


def planned(*arguments: str) -> dict[str, Trial]:
    return {trial.run: trial for trial in plan(*arguments).trials}


def run(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


# in a plan


def test_each_recipe_is_a_trial_named_after_it_beside_one_baseline() -> None:
    trials = planned("--recipes", "mxfp8", "nvfp4", "te_delayed", "deepseek_v3", "--seeds", "2")
    names = {f"{name}-s{seed}" for name in ("mxfp8", "nvfp4", "te_delayed", "deepseek_v3") for seed in (42, 43)}
    assert set(trials) == names | {"bf16_baseline-s42", "bf16_baseline-s43"}
    for name in names:
        config = trials[name].config
        recipe, _, seed = name.partition("-s")
        assert config.casts_at("h.0.mlp.up") == TrainConfig(recipe=recipe).casts_at("h.0.mlp.up")
        assert config.recipe == recipe and trials[name].baseline == f"bf16_baseline-s{seed}"
    assert trials["bf16_baseline-s42"].config.recipe is None


def test_every_recipe_can_be_planned_and_its_trial_travels() -> None:
    trials = planned("--recipes", *published_names())
    assert len(trials) == len(published_names()) + 1
    for trial in trials.values():
        assert Trial.from_json(trial.to_json(), "sweep.json") == trial


def test_a_recipe_stands_in_place_of_all_numerics_of_a_config(tmp_path: Path) -> None:
    fields = "format: E7M0\nmaster_weights: false\nscaling: none\nmax_steps: 7\nlearning_rate: 1e-3\n"
    (tmp_path / "mine.yaml").write_text(fields)
    config = planned("--recipes", "mxfp8", "--configs", str(tmp_path / "mine.yaml"))["mxfp8-s42"].config
    assert config == TrainConfig(recipe="mxfp8", model="tiny", max_steps=7, learning_rate=1e-3)
    (tmp_path / "other.yaml").write_text("max_steps: 8\n")
    assert {"mxfp8-mine-s42", "mxfp8-other-s42"} <= set(planned("--recipes", "mxfp8", "--configs", str(tmp_path)))


def test_recipes_and_formats_combine_and_leave_high_precision_alone() -> None:
    trials = planned("--recipes", "mxfp8", "torchao_rowwise_gw_hp", "--formats", "E0M7", "e2m5")
    assert {run for run, trial in trials.items() if not trial.is_baseline} == {
        f"{recipe}-{fmt}-s42" for recipe in ("mxfp8", "torchao_rowwise_gw_hp") for fmt in ("e0m7", "e2m5")
    }
    shown = [cast.format for cast in trials["torchao_rowwise_gw_hp-e0m7-s42"].config.casts_at().values()]
    assert shown == ["E0M7", "E0M7", "E0M7", "E0M7", "BF16", "BF16"]
    assert {str(cast) for cast in trials["mxfp8-e2m5-s42"].config.casts_at().values()} == {"E2M5 1x32"}


def test_settings_and_interventions_act_on_a_recipe() -> None:
    trials = planned("--recipes", "te_delayed", "--set", "amax_history=4", "--interventions", "none", "clip")
    assert {trial.config.amax_history for trial in trials.values() if not trial.is_baseline} == {4}
    assert trials["te_delayed-s42+clip"].config.enable_partition_clipping


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipes", "mxfp9"], "--recipes: no published recipe 'mxfp9'; did you mean 'mxfp8'?"),
        (["--recipes", "mxfp8", "--set", "scaling=delayed"], "--recipes mxfp8: scale_granularity='1x32' with scaling"),
        (
            ["--recipes", "bf16_sr", "--formats", "E4M3"],
            "--recipes bf16_sr --formats E4M3: the recipe rounds no operand",
        ),
        (["--recipes", "mxfp8", "--formats", "E4M33"], "--formats: "),
        (["--recipes", "mxfp8", "--set", "recipe=nvfp4"], "--recipes and --set recipe=...: give one of them"),
        (["--set", "recipe=mxfp"], "recipe='mxfp': no published recipe 'mxfp'; did you mean 'mxfp8'?"),
    ],
)
def test_wrong_wishes_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises((SweepError, ConfigError)) as refused:
        plan(*arguments)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_the_default_sweep_has_the_two_recipes_that_are_used_most() -> None:
    trials = planned()
    assert {trial.config.recipe for trial in trials.values()} == {None, "te_delayed", "mxfp8"}


def test_a_recipe_of_the_default_sweep_that_an_override_contradicts_is_left_out_with_a_note() -> None:
    found = plan("--set", "scaling=delayed")
    assert "mxfp8-s42" not in {trial.run for trial in found.trials}
    (note,) = [
        note for note in found.notes if note.startswith("mxfp8 left out: scale_granularity='1x32' with scaling=")
    ]
    assert len(note.splitlines()) == 1
    with pytest.raises(ConfigError, match="mxfp8"):  # named, it is an error
        plan("--set", "scaling=delayed", "--configs", str(ROOT / "configs" / "mxfp8.yaml"))


def test_dry_run_and_submit_know_the_option() -> None:
    shown = run("tune/sweep.py", "--dry-run", "--recipes", "nvfp4", "--formats", "E2M3").stdout
    assert "nvfp4-e2m3-s42" in shown and "E2M3 (nvfp4)" in shown
    refused = run("tune/submit.py", "--recipes", "nvfp4", "--results", "relative")
    assert refused.returncode == 2 and "--results relative" in refused.stderr  # it was the results that were refused


# on the terminal


@pytest.mark.parametrize("width", [80, 100])
def test_the_command_fits_the_terminal_and_cuts_nothing(width: int) -> None:
    overview = run("-m", "altgrad", "recipes", COLUMNS=str(width)).stdout
    assert all(len(line) <= width for line in overview.splitlines()) and "…" not in overview
    first_words = [line.split(" ")[0] for line in overview.splitlines() if not line.startswith(" ")]
    assert first_words == ["name", *published_names()]
    everything = run("-m", "altgrad", "recipes", *published_names(), COLUMNS=str(width)).stdout
    assert all(len(line) <= width for line in everything.splitlines()) and "…" not in everything
    for name in published_names():
        assert f"{name}: " in everything


def test_a_recipe_is_shown_with_six_operands_what_stays_high_and_its_source() -> None:
    shown = run("-m", "altgrad", "recipes", "nvfp4", COLUMNS="100").stdout
    for words in (
        "fprop.weight      E2M1 16x16 E4M3",
        "wgrad.gradient    E2M1 1x16 E4M3 stochastic Hadamard 16",
        "stays high: layers *lm_head in BF16, the last 15% of the blocks in BF16",
        "weights and optimizer: FP32 master weights, FP32 moments",
        "arXiv:2509.25149",
        "exact:",
        "differs:",
    ):
        assert words in shown


def test_wrong_names_are_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = run("-m", "altgrad", "recipes", "mxfp8", "nvpf4")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "python -m altgrad recipes: error: no published recipe 'nvpf4'; did you mean 'nvfp4'?\n"
    wrong = run("-m", "altgrad", "recipes", "--markdown", tmp_path)
    assert wrong.returncode == 2 and "no such folder" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    config = tmp_path / "wrong.yaml"
    config.write_text("recipe: mxfp8\nscaling: delayed\n")
    wrong = run("-m", "altgrad", "train", config, "--out", tmp_path / "out")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "of recipe='mxfp8'" in wrong.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.yaml"]


def test_the_tables_need_no_torch() -> None:
    code = "import sys; from altgrad.__main__ import main; main(['recipes', 'mxfp8']); print('torch' in sys.modules)"
    assert run("-c", code).stdout.splitlines()[-1] == "False"


# in the documents


def test_the_page_is_what_the_registry_says() -> None:
    page = (ROOT / recipe_tables.PAGE).read_text(encoding="utf-8")
    assert page == recipe_tables.page(), "python -m altgrad recipes --markdown"


def test_markdown_writes_the_page_of_a_clone_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    done = run("-m", "altgrad", "recipes", "--markdown", tmp_path)
    assert done.returncode == 0 and "recipes.md" in done.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["docs", "recipes.md"]
    assert (tmp_path / "docs" / "recipes.md").read_text() == recipe_tables.page()
