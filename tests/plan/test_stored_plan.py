"""A plan is stored and read back; what may be resumed under which name and with which options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs.sweep_plans import CPU_BOX
from tune.plan.options import SweepError, SweepOptions
from tune.plan.sweep_record import check_same_plan, create_sweep, open_sweep
from tune.plan.trial import SweepPlan
from tune.plan.trials import plan_sweep
from tune.sweep import main


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
