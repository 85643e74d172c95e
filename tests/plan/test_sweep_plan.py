"""Planning a sweep: what the shipped configs are, which trials there are, under which names, what a dry run shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.compare import Settings
from altgrad.config.train_config import TrainConfig, load_config
from tests.support.runs.sweep_plans import CPU_BOX, GPU_BOX, SCRIPT, planned, write_config
from tune.plan.options import SweepOptions, parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trials import CONFIGS, plan_sweep
from tune.sweep import main

SPLITS = ("E0M7", "E1M6", "E2M5", "E3M4", "E4M3", "E5M2", "E6M1", "E7M0")


@pytest.mark.parametrize("fmt", SPLITS)
def test_each_split_has_a_uniform_and_a_stored_config(fmt: str) -> None:
    stem = fmt.lower()
    uniform = load_config(CONFIGS / ("e5m2_short.yaml" if fmt == "E5M2" else f"{stem}_uniform.yaml"))
    stored = load_config(CONFIGS / f"{stem}_stored.yaml")
    assert uniform.format == stored.format == fmt
    assert uniform.default_sweep and uniform.master_weights and not stored.master_weights
    assert stored.update_rounding == "nearest"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_config_says_why_and_has_the_common_settings(file: Path) -> None:
    config = load_config(file)
    assert file.read_text().startswith("# ")
    assert config.max_steps == (2000 if file.stem == "e5m2_fp8" else 500)
    common = (config.seed, config.batch_size, config.learning_rate, config.use_shadow, config.diagnostic_interval)
    assert common == (42, 12, 6e-4, True, 25)
    assert config.log_stiffness and config.log_grid_alignment and config.log_ulp


def test_the_default_sweep_is_the_uniform_group_and_a_few_that_collapse() -> None:
    runs = set(planned())
    uniform = {f"{fmt.lower()}_uniform-s42" for fmt in SPLITS if fmt != "E5M2"}
    assert runs >= uniform | {"e5m2_short-s42", "bf16_baseline-s42", "e0m7_unscaled-s42"}
    assert "e5m2_fp8-s42" not in runs
    assert {run for run in runs if "stored" in run} == {"e3m4_stored-s42", "e4m3_stored-s42", "e7m0_stored-s42"}


def test_fields_that_only_fit_the_format_leave_the_baseline_alone() -> None:
    trials = planned("--formats", "E4M3", "--set", "native_fp8=true")
    assert trials["e4m3-s42"].config.native_fp8 and trials["e4m3-s42"].baseline == "bf16_baseline-s42"
    assert not trials["bf16_baseline-s42"].config.native_fp8  # FP8 tensor cores know no BF16


def test_an_intervention_without_effect_is_left_out_with_the_reason() -> None:
    options = parse_options(["--formats", "E4M3", "--interventions", "none", "stochastic", "master"])
    plan = plan_sweep(options, CPU_BOX)
    assert [trial.run for trial in plan.trials] == ["bf16_baseline-s42", "e4m3-s42"]  # FP32 masters from the start
    assert [note for note in plan.notes if "left out" in note] == [
        "e4m3-s42+stochastic left out: it would repeat e4m3-s42 (update_rounding has no effect here)",
        "e4m3-s42+master left out: it would repeat e4m3-s42",
    ]


def test_trials_are_the_product_of_configs_interventions_rates_and_seeds() -> None:
    trials = planned(
        "--formats", "E4M3", "e7m0", "--seeds", "3", "--lr", "1e-3", "3e-4", "--interventions", "none", "clip+shift"
    )
    baselines = [trial for trial in trials.values() if trial.is_baseline]
    assert len(baselines) == 3 * 2  # one per seed and learning rate, none per intervention
    assert len(trials) == 2 * 2 * 2 * 3 + len(baselines)
    one = trials["e7m0-s44-lr0.0003+clip+shift"]
    config = one.config
    assert (config.format, config.seed, config.learning_rate, one.intervention) == ("E7M0", 44, 3e-4, "clip+shift")
    assert config.enable_partition_clipping and config.enable_emergency_shift


def test_every_trial_is_compared_with_the_bf16_run_of_its_own_seed_rate_and_length() -> None:
    trials = planned("--seeds", "2", "--lr", "1e-3", "1e-4", "--configs", str(CONFIGS))
    for trial in trials.values():
        if trial.is_baseline:
            assert trial.baseline is None
            continue
        baseline = trials[trial.baseline or "none"]
        pair = [Settings(t.config.model_dump(), t.intervention).pair for t in (trial, baseline)]
        assert baseline.is_baseline and pair[0] == pair[1]
    assert {t.config.max_steps for t in trials.values() if t.is_baseline} == {500, 2000}


def test_a_config_of_ones_own_gets_a_baseline_without_its_numerics(tmp_path: Path) -> None:
    file = write_config(
        tmp_path, "mine", format="E3M2", scaling="none", master_weights=False, enable_emergency_shift=True, n_layer=3
    )
    trials = planned("--configs", str(file))
    baseline = trials["bf16_baseline-s42"].config
    plain = TrainConfig(format="BF16", n_layer=3, model="tiny")
    assert baseline == plain
    assert set(planned("--configs", str(file), "--no-baseline")) == {"mine-s42"}


def test_baselines_start_first_and_then_the_longest(tmp_path: Path) -> None:
    for name, steps in (("short", 10), ("long", 1000), ("middle", 100)):
        write_config(tmp_path, name, format="E4M3", max_steps=steps)
    runs = [run for run in planned("--configs", str(tmp_path)) if not run.startswith("bf16")]
    order = list(planned("--configs", str(tmp_path)))
    assert runs == ["long-s42", "middle-s42", "short-s42"]
    assert all(run.startswith("bf16") for run in order[:3])


def test_of_equal_trials_those_that_may_collapse_start_last() -> None:
    order = list(planned())
    assert [run for run in order if "stored" in run or "unscaled" in run] == order[-4:]


def test_equal_names_become_distinct_and_equal_configs_run_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = write_config(tmp_path / "a", "same", format="E4M3")
    other = write_config(tmp_path / "b", "same", format="E5M2")
    copy = write_config(tmp_path, "copy", format="E4M3")
    plan = plan_sweep(parse_options(["--configs", str(one), str(other), str(copy)]), CPU_BOX)
    assert [trial.run for trial in plan.trials] == ["bf16_baseline-s42", "same-s42", "same-s42-2"]
    assert any("copy-s42" in note for note in plan.notes)


@pytest.mark.parametrize(("machine", "model"), [(CPU_BOX, "tiny"), (GPU_BOX, "small")])
def test_the_model_fits_the_machine_unless_somebody_chose_one(machine: Machine, model: str, tmp_path: Path) -> None:
    plan = plan_sweep(SweepOptions(), machine)
    assert {trial.config.model for trial in plan.trials} == {model}
    assert any(model in note and machine.gpu_note in note for note in plan.notes)
    assert {t.config.model for t in planned("--model", "micro", machine=machine).values()} == {"micro"}
    own = write_config(tmp_path, "own", format="E4M3", model="medium")
    assert {t.config.model for t in planned("--configs", str(own), machine=machine).values()} == {"medium"}


def test_overrides_reach_every_trial_and_keep_their_types() -> None:
    trials = planned("--set", "scaling=delayed", "learning_rate=1e-3", "--set", "layer_formats={lm_head: BF16}")
    trained = [trial.config for trial in trials.values() if not trial.is_baseline]
    assert {config.scaling for config in trained} == {"delayed"}
    assert all(config.learning_rate == 1e-3 and config.layer_formats == {"lm_head": "BF16"} for config in trained)


def test_relative_data_paths_are_resolved_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("words " * 1000)
    monkeypatch.chdir(tmp_path)
    trials = planned("--formats", "E4M3", "--data", "text.txt")
    assert {trial.config.data for trial in trials.values()} == {str(tmp_path / "text.txt")}
    assert {trial.config.data for trial in planned("--formats", "E4M3").values()} == {"opticks"}


def test_dry_run_answers_without_torch_and_ray_and_creates_nothing(tmp_path: Path) -> None:
    probe = (
        "import sys, tune.sweep; code = tune.sweep.main(['--dry-run', '--seeds', '2']);"
        "print(sorted({'torch', 'ray'} & sys.modules.keys())); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    assert "e7m0_uniform-s43" in done.stdout and "at a time" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--data", "nowhere.txt"), "no such text"),
        (("--task", "nowhere.nothing:task"), "no module 'nowhere'"),
        (("--from", "nowhere@3"), "no run in"),
        (("--set", "layer_formats={nothing: BF16}"), "nothing"),
        (("--set", "device=cuda"), "device='cuda'"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    given: tuple[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for dry in (["--dry-run"], ["--dry-run", "--probe"]):  # before it measures anything
        assert main([*dry, "--formats", "E4M3", "--model", "micro", *given]) == 2
        told = capsys.readouterr()
        assert reason in told.err and len(told.err.splitlines()) == 1 and not told.out


def test_the_help_shows_its_options_in_groups(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], cwd=tmp_path, capture_output=True, text=True)
    groups = [line for line in done.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert {"which trials:", "where the results go:", "how it runs:"} <= set(groups)
    for option in ("--formats", "--interventions", "--resume", "--gpus-per-trial", "--scheduler", "--wandb"):
        assert option in done.stdout


def test_the_resume_command_repeats_how_it_ran_and_quotes() -> None:
    options = parse_options(["--results", "my results", "--max-concurrent", "3", "--scheduler", "asha"])
    command = options.resume_command("one")
    assert command.endswith("--resume one --results 'my results' --max-concurrent 3 --scheduler asha")
