"""What each trial gets of the machine, and that a resumed sweep gives it the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from altgrad.config.train_config import TrainConfig
from tests.support.runs.sweep_plans import CPU_BOX, GPU_BOX
from tune.plan.options import SweepError, SweepOptions, parse_options
from tune.plan.resources.machine import Machine, share_out
from tune.plan.sweep_record import create_sweep, open_sweep
from tune.plan.trial import Trial
from tune.plan.trials import plan_sweep
from tune.sweep import _plan, _resources


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
