"""The sweep's queue played through by hand, and what a probe's times make of a trial."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from altgrad.config.train_config import TrainConfig
from tests.servers.polling import PATIENCE
from tests.support.runs.sweep_plans import SCRIPT, planned, write_config
from tune.plan.options import SweepError
from tune.plan.resources.machine import Resources
from tune.plan.resources.placement import Expected, place, work
from tune.plan.trial import SweepPlan, Trial
from tune.plan.trial_kinds import runs_alike, timed_kind
from tune.timing.probe import StepTimes, TimesStore, expected, measure

pytestmark = pytest.mark.long

TWO_AT_A_TIME = Resources(cpus=1.0, gpus=0.0, concurrent=2)
TIMES = StepTimes(start=4.0, setup=2.0, step=0.1, diagnosis=0.5, validation=1.0, checkpoint=0.25)


# the queue


def test_a_trial_goes_to_the_slot_that_is_free_first() -> None:
    # slot 0: 5 from 0 to 5, then 1 from 5 to 6; slot 1: 3, then 2 to 5, then 2 to 7 (both free at 5: slot 0 is taken)
    found = place([5, 3, 2, 1, 2], slots=2)
    assert [(p.slot, p.wave, p.start, p.end) for p in found.trials] == [
        (0, 0, 0, 5),
        (1, 0, 0, 3),
        (1, 1, 3, 5),
        (0, 1, 5, 6),
        (1, 2, 5, 7),
    ]
    assert (found.end, found.waves, found.tail) == (7, 3, 1)


def test_the_longest_first_makes_the_tail_short() -> None:
    lengths = [1.0, 1.0, 1.0, 3.0]
    assert (place(lengths, 2).end, place(lengths, 2).tail) == (4, 2)
    assert (place(sorted(lengths, reverse=True), 2).end, place(sorted(lengths, reverse=True), 2).tail) == (3, 0)


def test_equal_trials_make_waves_of_as_many_as_there_are_slots() -> None:
    assert [p.wave for p in place([1] * 7, slots=3).trials] == [0, 0, 0, 1, 1, 1, 2]


def test_every_slot_begins_when_its_process_has_started() -> None:
    found = place([5, 3, 2], slots=2, start=10)
    assert [(p.start, p.end) for p in found.trials] == [(10, 15), (10, 13), (13, 15)]
    assert place([], slots=2, start=10).end == 0


@pytest.mark.parametrize(("count", "slots", "tail"), [(0, 2, 0), (1, 1, 0), (1, 4, 10)])
def test_few_trials_are_placed_too(count: int, slots: int, tail: float) -> None:
    found = place([10.0] * count, slots)
    assert (found.end, found.waves, found.tail) == (10.0 * count, count, tail)


def test_work_grows_with_steps_batch_and_model() -> None:
    base = TrainConfig(model="tiny")
    assert work(base.altered(max_steps=1000)) == 2 * work(base)
    assert work(base.altered(batch_size=24)) == 2 * work(base)
    assert work(base.altered(model="small")) > 50 * work(base)


@pytest.mark.parametrize("begin", [0, 250, 300])
@pytest.mark.parametrize("last", [500, 510])
def test_a_trial_that_goes_on_from_a_checkpoint_takes_the_time_of_its_own_steps(begin: int, last: int) -> None:
    """Counted step by step; a branch, and weights whose step is kept."""
    whole = TrainConfig(max_steps=last, diagnostic_interval=50, eval_interval=100, checkpoint_interval=200)
    branch = whole.altered(branch_from={"run": "trunk", "step": begin})
    kept = whole.altered(start_from=f"trunk@{begin}", start_keeps=["step"])
    expected = TIMES.setup
    for step in range(begin + 1, last + 1):
        due = [step % interval == 0 or step == last for interval in (50, 100, 200)]
        expected += (TIMES.diagnosis if due[0] else TIMES.step) + TIMES.validation * due[1] + TIMES.checkpoint * due[2]
    for config in (branch, kept):
        assert TIMES.seconds(config) == pytest.approx(expected)
        assert work(config) * last == work(whole) * (last - begin)


def test_a_large_model_starts_before_a_small_one_with_more_steps(tmp_path: Path) -> None:
    write_config(tmp_path, "a_small", format="E4M3", model="tiny", max_steps=1000)
    write_config(tmp_path, "b_large", format="E4M3", model="small", max_steps=500)
    runs = [run for run in planned("--configs", str(tmp_path), "--no-baseline")]
    assert runs == ["b_large-s42", "a_small-s42"]


def test_measured_times_put_the_longest_first_behind_the_baselines() -> None:
    trials = tuple(Trial(name, TrainConfig(format=name)) for name in ("BF16", "E4M3", "E5M2"))
    plan = SweepPlan(trials, ("a note",)).timed(Expected(9.0, (1.0, 2.0, 3.0)), "another")
    assert [trial.run for trial in plan.trials] == ["BF16", "E5M2", "E4M3"]
    assert plan.expected == Expected(9.0, (1.0, 3.0, 2.0)) and plan.notes == ("a note", "another")
    assert SweepPlan(trials).timed(None).trials == trials


# times


def test_a_trial_takes_its_setup_and_what_each_interval_adds() -> None:
    config = TrainConfig(max_steps=105, diagnostic_interval=50, eval_interval=100, checkpoint_interval=30)
    # diagnosed at 50, 100 and 105, validated at 100 and 105, kept at 30, 60, 90 and 105
    assert TIMES.seconds(config) == pytest.approx(2.0 + 102 * 0.1 + 3 * 0.5 + 2 * 1.0 + 4 * 0.25)


def test_formats_and_seeds_are_one_kind_and_modes_are_not() -> None:
    base = TrainConfig(compile=False)
    for alike in ({"format": "E7M0"}, {"seed": 7}, {"learning_rate": 1.0}, {"max_steps": 7}, {"eval_interval": 3}):
        assert timed_kind(base.altered(**alike)) == timed_kind(base)
    for other in ({"batch_size": 3}, {"master_weights": False}, {"use_shadow": True}, {"model": "small"}):
        assert timed_kind(base.altered(**other)) != timed_kind(base)
    assert timed_kind(TrainConfig(max_steps=7)) != timed_kind(TrainConfig())  # so few may not be worth compiling


def test_what_shares_a_graph_is_counted_per_process() -> None:
    trials = [Trial(str(seed), TrainConfig(seed=seed)) for seed in range(6)] + [Trial("b", TrainConfig(batch_size=3))]
    assert runs_alike(trials, 2) == [3] * 6 + [1]


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"step": 1}}', '{"a": 3}', "{", "null"])
def test_a_damaged_store_holds_nothing_and_is_replaced(content: str, tmp_path: Path) -> None:
    store = TimesStore(tmp_path / "times.json")
    store.file.write_text(content)
    assert store.read() == {}
    store.add("b", TIMES)
    store.add("c", TIMES)
    assert store.read() == {"b": TIMES, "c": TIMES} and list(tmp_path.iterdir()) == [store.file]


def test_the_store_lies_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TimesStore().file == tmp_path / "altgrad" / "step-times.json"


# the probe


def test_a_probe_measures_real_steps_and_the_plan_finds_them_again(tmp_path: Path) -> None:
    micro = TrainConfig(model="micro", batch_size=4, compile=False, eval_batches=1, max_steps=40)
    trials = [Trial("a", micro.altered(format="BF16")), Trial("b", micro.altered(format="E4M3"))]
    store, said = TimesStore(tmp_path / "times.json"), list[str]()
    assert expected(trials, TWO_AT_A_TIME, store) is None
    measure(trials, TWO_AT_A_TIME, 0, store, said.append, window=0.1)
    assert len(said) == 1  # one kind
    (times,) = store.read().values()
    assert all(0.0002 < seconds < PATIENCE for seconds in asdict(times).values())
    assert times.setup < times.start  # which holds it
    known = expected(trials, TWO_AT_A_TIME, store)
    assert known is not None and known.start > times.start  # Ray's own comes on top
    assert known.seconds == tuple(times.seconds(trial.config) for trial in trials)
    alone = Resources(cpus=1.0, gpus=0.0, concurrent=1)
    assert expected(trials, alone, store) is None  # beside another trial it was slower
    assert expected([*trials, Trial("c", micro.altered(batch_size=5))], TWO_AT_A_TIME, store) is None


def test_a_trial_that_cannot_be_probed_is_named_in_one_line(tmp_path: Path) -> None:
    trial = Trial("broken", TrainConfig(model="micro", data=str(tmp_path / "nothing")))
    with pytest.raises(SweepError, match=r"^--probe: broken cannot train \(.*no such text.*exit code 1\)$"):
        measure([trial], TWO_AT_A_TIME, 0, TimesStore(tmp_path / "times.json"), lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_waves_and_with_stored_times_the_wall_time(tmp_path: Path) -> None:
    arguments = ["--formats", "E4M3", "E5M2", "E7M0", "--model", "micro", "--dry-run", "--max-concurrent", "2"]
    arguments += ["--cpus-per-trial", "1", "--set", "compile=false"]
    program = """
import sys, tune.sweep, tune.timing.probe
from tests.support.runs.sweep_plans import CPU_BOX
tune.sweep.this_machine = lambda: CPU_BOX
if sys.argv.pop(1) == "timed":
    probe = tune.timing.probe
    probe.TimesStore.read = lambda self: type("Any", (), {"get": lambda self, key: probe.StepTimes(
        start=0.0, setup=5.0, step=0.1, diagnosis=0.1, validation=0.0, checkpoint=0.0)})()
code = tune.sweep.main(sys.argv[1:])
assert not {"torch", "ray"} & sys.modules.keys()
sys.exit(code)
"""
    shown = {}
    for mode in ("bare", "timed"):
        command = [sys.executable, "-c", program, mode, *arguments]
        environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1]), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown[mode] = done.stdout
    assert "2 waves; how long they take was not measured here" in shown["bare"]
    # 6 s for Ray, then four trials of 5 + 500 x 0.1 = 55 s on two slots
    assert "expected wall time 1 min 56 s if no trial collapses: 2 waves on 2 slots" in shown["timed"]
    assert "Starts at" in shown["timed"] and "Starts at" not in shown["bare"]
    assert list(tmp_path.iterdir()) == []


def test_a_probe_for_another_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from tune.sweep import main

    assert main(["--probe", "--dry-run", "--address", "auto"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "--probe measures this machine" in error


def test_processes_of_a_probe_share_the_gpus_as_trials_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from tune.timing.probe import _devices

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _devices(Resources(1, 0.5, 4), gpus=2) == ["0", "0", "1", "1"]
    assert _devices(Resources(1, 2, 2), gpus=4) == ["0,1", "2,3"]
    assert _devices(TWO_AT_A_TIME, gpus=2) == ["", ""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert _devices(Resources(1, 1, 2), gpus=2) == ["5", "7"]
