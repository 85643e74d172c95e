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
from tune.sweep import _plan, _resources, main


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


@pytest.mark.parametrize(
    ("trials", "share", "used"),
    [(1, 1, [0]), (4, 1, [0, 1, 2, 3]), (5, 0.5, [0, 0, 1, 1, 2]), (9, 0.33, [0] * 3 + [1] * 3 + [2] * 3),
     (40, 0.25, [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4)],
)  # fmt: skip
def test_small_trials_share_a_gpu_only_as_far_as_there_are_too_few(trials: int, share: float, used: list[int]) -> None:
    found = share_out(SweepOptions(), GPU_BOX, [Trial(str(number), TrainConfig()) for number in range(trials)])
    assert found.gpus == share and found.concurrent == len(used)
    assert [list(found.gpus_of(slot)) for slot in range(found.concurrent)] == [[gpu] for gpu in used]
    few = share_out(SweepOptions(max_concurrent=4), GPU_BOX, [Trial("a", TrainConfig())] * trials)
    assert few.gpus == 1  # no more run at a time than there are GPUs


def test_a_plan_for_eight_gpus_says_which_trial_gets_which_within_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    box = Machine(cpus=64, gpus=8, gpu_note="8 CUDA GPUs found", gpu_bytes=79 * 2**30)
    monkeypatch.setattr("tune.sweep.this_machine", lambda: box)
    monkeypatch.setattr("tune.sweep._LOG_WIDTH", 80)
    plain = ["--dry-run", "--results", str(tmp_path), "--formats", "E4M3", "E5M2", "--seeds", "4"]
    found = {}
    for name, words in {"shared": [], "workers": ["--workers-per-trial", "4"]}.items():
        assert main([*plain, *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        head, _, *rows = lines[1:15]
        assert max(len(line) for line in lines[:15]) <= 80 and head.split()[:3] == ["Trial", "Wave", "GPU"]
        found[name] = [row.split()[1:3] for row in rows]
    assert found["shared"] == [["1", str(gpu)] for gpu in range(6) for _ in range(2)]
    assert found["workers"] == [[str(wave), gpus] for wave in range(1, 7) for gpus in ("0-3", "4-7")]


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
    with pytest.raises(SweepError, match=r"hold 1 GPU each, no CUDA GPU found; .*--gpus-per-trial 0, which"):
        _resources(SweepOptions(), CPU_BOX, plan.trials, sweep)
    options = SweepOptions(results=str(tmp_path), name="two", formats=("E4M3",), no_baseline=True)
    wide = create_sweep(options, plan, share_out(options, Machine(16, 0, "none"), plan.trials))
    with pytest.raises(
        SweepError, match=r"hold 16 CPU cores each, this machine has 2; .*--cpus-per-trial 2, which changes"
    ):
        _resources(SweepOptions(), CPU_BOX, plan.trials, wide)
