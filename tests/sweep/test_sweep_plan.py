"""Planning a sweep: which trials, under which names, and every wrong wish refused in one line, leaving nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.compare import Settings
from altgrad.config.train_config import ConfigError, TrainConfig, load_config
from tests.support.sweep_plans import CPU_BOX, GPU_BOX, SCRIPT, planned, write_config
from tune.plan.machine import Machine, share_out
from tune.plan.options import SweepError, SweepOptions, parse_options
from tune.plan.sweep_record import check_same_plan, create_sweep, open_sweep
from tune.plan.trial import SweepPlan, Trial
from tune.plan.trials import CONFIGS, plan_sweep
from tune.sweep import _plan, _resources, main

SPLITS = ("E0M7", "E1M6", "E2M5", "E3M4", "E4M3", "E5M2", "E6M1", "E7M0")
# what is in configs/


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


# trials


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


# resources


def test_two_cores_run_two_trials_of_one_thread() -> None:
    resources = share_out(SweepOptions(), CPU_BOX, plan_sweep(SweepOptions(), CPU_BOX).trials)
    assert (resources.concurrent, resources.threads, resources.gpus) == (2, 1, 0.0)


def test_a_single_trial_gets_all_cores() -> None:
    trial = Trial("one", TrainConfig())
    assert share_out(SweepOptions(), CPU_BOX, [trial]).threads == 2


@pytest.mark.parametrize(("share", "concurrent"), [(0.25, 16), (0.3, 12), (1, 4), (2, 2), (0, 16)])
def test_gpu_shares_decide_how_many_run_at_a_time(share: float, concurrent: int) -> None:
    trials = plan_sweep(parse_options(["--seeds", "3"]), GPU_BOX).trials
    options = SweepOptions(gpus_per_trial=share, cpus_per_trial=1)
    assert share_out(options, GPU_BOX, trials).concurrent == concurrent


def test_a_resumed_sweep_gives_each_trial_what_it_had_however_few_are_left(tmp_path: Path) -> None:
    """13 trials on 16 cores: a thread each.  The last one, alone, must not get 16: float32 sums would differ."""
    box = Machine(cpus=16, gpus=0, gpu_note="no CUDA GPU found")
    options = SweepOptions(results=str(tmp_path), name="one", formats=("E4M3",), seeds=13, no_baseline=True)
    plan = plan_sweep(options, box)
    first = share_out(options, box, plan.trials)
    sweep = create_sweep(options, plan, first)
    assert sweep.shares is not None and set(sweep.shares.runs_alike.values()) == {1} and first.threads == 1
    for trial in plan.trials[1:]:
        (sweep.folder / trial.run).write_json("end.json", {"status": "completed"})
    resume = SweepOptions(results=str(tmp_path), resume="one")
    found = open_sweep(resume)
    left = found.unfinished()
    assert found == sweep and len(left) == 1
    later = _resources(resume, box, left, found)
    assert (later.threads, later.workers, later.gpus, later.concurrent) == (1, 1, 0.0, 1)
    more = SweepOptions(results=str(tmp_path), resume="one", cpus_per_trial=4)
    assert _resources(more, box, left, found).threads == 4
    assert "--cpus-per-trial 4 for 1: from here on the numbers" in str(_plan(more, found, box).notes)
    assert not _plan(resume, found, box).notes


@pytest.mark.parametrize(
    ("asked", "workers"), [([], 2), (["--workers-per-trial", "1"], 1), (["--workers-per-trial", "2"], 2)]
)
def test_one_worker_that_was_asked_for_is_no_default(asked: list[str], workers: int, tmp_path: Path) -> None:
    box = Machine(cpus=16, gpus=0, gpu_note="no CUDA GPU found")
    options = parse_options(
        ["--results", str(tmp_path), "--name", "one", "--formats", "E4M3", "--workers-per-trial", "2"]
    )
    plan = plan_sweep(options, box)
    create_sweep(options, plan, share_out(options, box, plan.trials))
    resume = parse_options(["--results", str(tmp_path), "--resume", "one", *asked])
    found = open_sweep(resume)
    assert _resources(resume, box, found.unfinished(), found).workers == workers
    assert ("--workers-per-trial 1 for 2" in str(_plan(resume, found, box).notes)) == (workers == 1)
    assert ("--workers-per-trial" in resume.resume_command("one")) == bool(asked)


def test_an_old_plan_is_shared_out_among_all_its_trials_again(tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="one", formats=("E4M3", "E5M2"), no_baseline=True)
    plan = plan_sweep(options, CPU_BOX)
    create_sweep(options, plan)
    found = open_sweep(SweepOptions(results=str(tmp_path), resume="one"))
    assert found.shares is None
    assert _resources(SweepOptions(), CPU_BOX, found.trials[:1], found).threads == 1


def test_a_machine_with_less_than_the_trials_had_is_refused_with_the_way_on(tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="one", formats=("E4M3",), no_baseline=True)
    plan = plan_sweep(options, GPU_BOX)
    sweep = create_sweep(options, plan, share_out(options, GPU_BOX, plan.trials))
    with pytest.raises(SweepError, match=r"hold 0\.25 GPU each, no CUDA GPU found; .*--gpus-per-trial 0, which"):
        _resources(SweepOptions(), CPU_BOX, plan.trials, sweep)
    options = SweepOptions(results=str(tmp_path), name="two", formats=("E4M3",), no_baseline=True)
    wide = create_sweep(options, plan, share_out(options, Machine(16, 0, "none"), plan.trials))
    with pytest.raises(
        SweepError, match=r"hold 16 CPU cores each, this machine has 2; .*--cpus-per-trial 2, which changes"
    ):
        _resources(SweepOptions(), CPU_BOX, plan.trials, wide)


# refusals

BAD: dict[str, tuple[list[str], str]] = {
    "unknown format": (["--formats", "E4M33"], "E4M33"),
    "too many bits": (["--formats", "E9M9"], "from 1 to 15"),
    "misspelt field": (["--set", "learnin_rate=1"], "did you mean 'learning_rate'"),
    "misspelt option": (["--fromats", "E4M3"], "did you mean --formats"),
    "bad value": (["--set", "batch_size=many"], "batch_size='many'"),
    "no yaml": (["--set", "data={"], "--set"),
    "no equals sign": (["--set", "data"], "KEY=VALUE"),
    "native path of another format": (["--formats", "E3M4", "--set", "native_fp8=true"], "native_fp8=True: E3M4"),
    "graphs without a GPU": (["--set", "cuda_graphs=true"], "no CUDA GPU found"),
    "given twice": (["--max-steps", "5", "--set", "max_steps=6"], "give one of them"),
    "missing config": (["--configs", "no/such.yaml"], "no/such.yaml"),
    "unknown intervention": (["--interventions", "prayer"], "known: none, clip"),
    "no seeds": (["--seeds", "0"], "from 1"),
    "gpu without gpu": (["--gpus-per-trial", "1"], "no CUDA GPU found"),
    "more cores than there are": (["--cpus-per-trial", "4096"], "CPU cores"),
    "resume of nothing": (["--resume"], "no sweep in"),
    "name outside": (["--name", "../elsewhere"], "--name"),
    "hidden name": (["--name", ".hidden"], "--name"),
    "missing data": (["--data", "no/such/text"], "no/such/text"),
    "unknown model": (["--model", "huge"], "known: micro"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_wish_is_one_line_exit_code_2_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tune.sweep.this_machine", lambda: CPU_BOX)
    try:
        code = main([*arguments, "--results", "out"])
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    shown = capsys.readouterr()
    assert code == 2
    assert len(shown.err.strip().splitlines()) == 1 and expected in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"), [("", "empty"), ("short", "fewer than one block")], ids=["empty", "shorter than a block"]
)
def test_a_text_that_cannot_be_trained_on_is_refused_before_anything_is_created(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    assert main(["--data", str(text), "--results", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1 and expected in shown.err
    assert not (tmp_path / "out").exists()


def test_a_results_root_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["--results", str(tmp_path / "file"), "--formats", "E4M3"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and str(tmp_path / "file") in error


def test_a_read_only_results_root_is_one_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("altgrad.storage.folder.os.makedirs", refuse)
    monkeypatch.setattr("altgrad.storage.folder.open", refuse, raising=False)
    monkeypatch.setattr("tune.cluster.ray_session.local_ray", started)
    for root in (tmp_path, tmp_path / "new" / "root"):
        assert main(["--results", str(root), "--formats", "E4M3", "--max-steps", "2"]) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1 and "Read-only file system" in error and str(root) in error
    assert not list(tmp_path.iterdir())


def test_an_error_in_a_config_file_names_the_file(tmp_path: Path) -> None:
    file = write_config(tmp_path, "mine", formt="E4M3")
    with pytest.raises(ConfigError, match=r"mine\.yaml: formt: unknown field; did you mean 'format'"):
        planned("--configs", str(file))


# what is stored


def test_a_stored_plan_is_read_back_whole(tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="one", seeds=2, interventions=("none", "shift"))
    plan = plan_sweep(options, CPU_BOX)
    create_sweep(options, plan)
    assert open_sweep(SweepOptions(results=str(tmp_path), resume="newest")).trials == plan.trials


def test_a_taken_name_is_refused_with_the_way_on(tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="one")
    create_sweep(options, SweepPlan(()))
    with pytest.raises(SweepError, match="--resume one"):
        create_sweep(options, SweepPlan(()))


@pytest.mark.parametrize("name", ["ghost", "../one", "."])
def test_resume_of_an_unknown_name_says_which_there_are(name: str, tmp_path: Path) -> None:
    create_sweep(SweepOptions(results=str(tmp_path), name="one"), SweepPlan(()))
    with pytest.raises(SweepError, match=r"no such sweep in .*; there: one"):
        open_sweep(SweepOptions(results=str(tmp_path), resume=name))


def test_resume_with_other_wishes_names_the_difference(tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="one", formats=("E4M3",))
    sweep = create_sweep(options, plan_sweep(options, CPU_BOX))
    check_same_plan(sweep, plan_sweep(options, CPU_BOX).trials, options)
    longer = SweepOptions(results=str(tmp_path), name="one", formats=("E4M3",), max_steps=7)
    with pytest.raises(SweepError, match="max_steps is 500, the options say 7; leave out --formats --max-steps"):
        check_same_plan(sweep, plan_sweep(longer, CPU_BOX).trials, longer)


def test_resume_may_name_its_sweep_by_name_too(tmp_path: Path) -> None:
    create_sweep(SweepOptions(results=str(tmp_path), name="one"), SweepPlan(()))
    create_sweep(SweepOptions(results=str(tmp_path), name="two"), SweepPlan(()))
    assert open_sweep(SweepOptions(results=str(tmp_path), resume="newest", name="one")).name == "one"
    assert open_sweep(SweepOptions(results=str(tmp_path), resume="one")).name == "one"
    assert main(["--resume", "--name", "one", "--results", str(tmp_path), "--dry-run"]) == 0


def test_only_runs_that_ended_well_are_finished(tmp_path: Path) -> None:
    options = SweepOptions(results=str(tmp_path), name="one", formats=("E4M3", "E5M2", "E7M0"))
    sweep = create_sweep(options, plan_sweep(options, CPU_BOX))
    for run, status in (("e4m3-s42", "collapsed"), ("e5m2-s42", "failed")):
        (sweep.folder / run).write_json("end.json", {"status": status})
    assert [trial.run for trial in sweep.unfinished()] == ["bf16_baseline-s42", "e5m2-s42", "e7m0-s42"]


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
