"""Real replays: a fault that was planted in one operand of one layer is named, and nothing is blamed without cause."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from altgrad.branch.checkpoints import checkpoint_files, step_of
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.checkpoints import checkpointing
from altgrad.experiment.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from altgrad.explain import read_explanation
from altgrad.report.evidence import Evidence
from altgrad.results import RecordError, Verdict, read_run
from altgrad.storage.folder import Folder
from altgrad.training import run_format_experiment
from tests.support.results.written_runs import write_ended_run
from tests.support.runs.small_runs import SMALL
from tune.plan.options import SweepError
from tune.replay.arm_run import train_arm
from tune.replay.case_of_run import _behind_since, _step_seconds, replayed
from tune.replay.explaining import Explanation

pytestmark = pytest.mark.long

# an operand whose scale is frozen far too small: all of it overflows to infinity
FROZEN = {"format": "E5M2", "scaling": "static", "static_scale": 2.0**-30, "overflow": "inf"}
PLANTED = SMALL.altered(format="E4M3", max_steps=40, layer_gemms={"*mlp.up": {"dgrad": {"gradient": FROZEN}}})


def collapsed(config: TrainConfig, folder: Path, **options: Any) -> Folder:
    result = run_format_experiment(config, folder, **options)
    assert result.verdict is not None
    return result.folder


def explained(run: Folder, budget: int = 30, steps: int | None = None) -> tuple[Explanation, list[str]]:
    """The explanation of a run, its arms trained one after the other in this process, and their names."""
    explanation, names = Explanation(replayed(read_run(run), steps, replays=2), budget), []
    explanation.begin()
    while (arm := explanation.next_arm()) is not None:
        names.append(arm.name)
        explanation.take(arm, train_arm(explanation.job_of(arm, "a test")))
    explanation.end()
    return explanation, names


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Explanation, list[str]]:
    run = collapsed(PLANTED, tmp_path_factory.mktemp("planted") / "run")
    return run, *explained(run)


def test_the_planted_operand_is_named_and_its_replays_agree(planted):
    _, explanation, names = planted
    found = explanation.conclusion
    assert [str(cell) for cell in found.cells] == ["dgrad.gradient of h.0.mlp.up"]
    assert "alone prevents the collapse (2 of 2 replays); healing everything else does not" in found.sentence
    assert found.rule == "operands" and names[0] == "control" and len(names) <= 15


def test_a_loss_that_is_nan_from_the_start_is_repeated_too(tmp_path):
    nan = SMALL.altered(format="E4M3", max_steps=40, layer_gemms={"*mlp.up": {"fprop": {"weight": FROZEN}}})
    run = collapsed(nan, tmp_path / "run")
    assert read_run(run).table("steps", ["loss"])["loss"].to_pylist() != [] and "nan" in repr(read_run(run).verdict)
    explanation, _ = explained(run)
    assert [str(cell) for cell in explanation.conclusion.cells] == ["fprop.weight of h.0.mlp.up"]


def test_the_record_has_the_numbers_of_every_arm_and_is_checked(planted):
    run, _, names = planted
    record = read_explanation(run)
    assert record is not None and record["finished"] and [arm["name"] for arm in record["arms"]] == names
    control, healed = record["arms"][0], next(arm for arm in record["arms"] if arm["name"] == "all_operands")
    assert (control["status"], control["repeats"], control["step"]) == ("collapsed", True, 5)
    assert (healed["status"], healed["step"], healed["loss_control"]) == ("prevented", None, control["loss"])
    assert healed["loss"] != control["loss"]
    assert record["notes"] == [
        "there is no checkpoint from before the first sign (gradient_norm, step 1), so every replay starts from step 0"
    ]
    damaged = Folder.at(run.path + "-damaged")
    damaged.write_json("explanation.json", {**record, "arms": [{**control, "status": "healthy"}]})
    with pytest.raises(RecordError, match=r"arms\.0\.status='healthy'"):
        read_explanation(damaged)
    assert read_explanation(Folder.at(run.path + "-none")) is None


def test_a_second_explanation_trains_no_arm_again(planted, monkeypatch):
    run, explanation, names = planted
    monkeypatch.setattr("tune.replay.arm_run._train", lambda *_: pytest.fail("trained again"))
    again, repeated = explained(run)
    assert repeated == names and again.conclusion == explanation.conclusion


def test_a_budget_ends_it_with_what_was_shown(planted, tmp_path):
    run = collapsed(PLANTED, tmp_path / "run")
    explanation, names = explained(run, budget=3)
    assert len(names) == 3 and explanation.conclusion.rule == "undecided"
    assert "smaller sets were not all tried" in explanation.conclusion.sentence
    record = read_explanation(run)
    assert record is not None and record["notes"][-1].startswith("the budget of 3 replays is used up; ")


def test_a_replay_starts_at_the_last_checkpoint_before_the_first_sign_and_repeats_all_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "delete_old", lambda *_, **__: None)
    late = SMALL.altered(format="E4M3", max_steps=40, learning_rate=1e-3, gap_patience=4, gap_limit=0.05)
    baseline = {step: (5.5 if step < 18 else 4.0) for step in range(1, 41)}
    run = collapsed(late, tmp_path / "sweep" / "run", baseline=baseline)
    verdict = read_run(run).verdict
    assert verdict is not None and verdict.rule == "gap_to_baseline" and verdict.step > 18
    with pytest.raises(SweepError, match="judged by the gap to a baseline, which is not in"):
        replayed(read_run(run), None, 1)
    monkeypatch.setattr("tune.replay.case_of_run._baseline", lambda _: (baseline, {}))
    case = replayed(read_run(run), None, 1)
    assert case.moved is not None and 0 < case.case.start < case.moved.step <= verdict.step
    explanation, _ = explained(run)
    assert explanation.conclusion.rule == "nothing" and not explanation.conclusion.cells and explanation.spent is None
    checkpoints, start = run / "checkpoints", case.case.start
    state, _ = load_checkpoint(checkpoints, start)
    assert state is not None
    del state["trainer"]["diagnostics"]  # as another version would have written it
    checkpoints.delete(next(name for name in checkpoint_files(checkpoints) if step_of(name) == start))
    save_checkpoint(checkpoints, start, state)
    run.filesystem.delete_dir(f"{run.path}/explain")
    explanation, names = explained(run)
    assert names == ["control"] and explanation.conclusion.rule == "not_reproduced"
    assert "the checkpoint is another version's" in explanation.conclusion.sentence


@pytest.mark.parametrize(
    ("rule", "gaps", "since"),
    [
        ("gap_to_baseline", {step: 0.01 if step < 9 else 0.3 for step in range(1, 39)}, 9),
        ("gap_to_baseline", {step: 0.3 if step < 9 or step > 20 else 0.01 for step in range(1, 39)}, 21),
        ("gap_to_baseline", {step: math.nan if step == 30 else 0.3 for step in range(1, 39)}, 31),
        ("stalled", dict.fromkeys(range(1, 39), 0.3), 38),
    ],
)
def test_a_replay_begins_before_the_gap_that_was_judged(rule, gaps, since, tmp_path):
    """From within it the run would be judged before healing could have shown."""
    steps = [{"step": step, "loss": 3.0, "gap_to_baseline": gap} for step, gap in gaps.items()]
    run = write_ended_run(Folder.at(tmp_path / "run"), Verdict(38, rule, "gap_to_baseline", 0.3, 0.2), steps=steps)
    assert _behind_since(Evidence.of(run)) == since


def test_the_time_of_a_replay_is_foretold_by_the_steps_that_the_run_trained_in_it(tmp_path):
    """0.5 s a step; with `stop_on_collapse: false`, or a baseline that came late, a run goes on after its verdict."""
    steps = [{"step": step, "loss": 3.0, "elapsed_seconds": 0.5 * step} for step in range(1, 401)]
    run = write_ended_run(Folder.at(tmp_path / "run"), Verdict(40, "diverged", "loss", 3.0, 2.0), steps=steps)
    assert _step_seconds(Evidence.of(run)) == 0.5


def test_a_replay_with_other_numbers_ends_the_explanation(tmp_path):
    run = collapsed(PLANTED, tmp_path / "run")
    info = run.read_json("run.json")
    info["config"]["learning_rate"] *= 1.5  # not what the run trained with
    info["config"]["format"] = "E5M2"
    run.write_json("run.json", info)
    explanation, names = explained(run)
    assert names == ["control"] and explanation.conclusion.rule == "not_reproduced"
    assert "at step 1 is " in explanation.conclusion.sentence and " instead of " in explanation.conclusion.sentence
    assert "another version" not in explanation.conclusion.sentence
    run.write_json("run.json", {**info, "git_commit": "a" * 40})
    assert "; another version trained the run)" in explained(run)[0].conclusion.sentence
    info["batches_hash"] = "0" * 16
    run.write_json("run.json", info)
    run.filesystem.delete_dir(f"{run.path}/explain")
    explanation, names = explained(run)
    assert names == ["control"] and "its run began with other training data" in explanation.conclusion.sentence


def test_what_cannot_be_explained_is_one_line(planted, tmp_path):
    healthy = run_format_experiment(SMALL, tmp_path / "healthy").folder
    with pytest.raises(SweepError, match="the run did not collapse") as caught:
        replayed(read_run(healthy), None, 1)
    assert "\n" not in str(caught.value)
    info = planted[0].read_json("run.json")
    own = Folder.at(tmp_path / "own")
    own.write_json("run.json", {**info, "data": None})
    own.write_bytes("end.json", planted[0].read_bytes("end.json"))
    with pytest.raises(SweepError, match="were given in Python"):
        replayed(read_run(own), None, 1)
    with pytest.raises(SweepError, match="use at least 5"):
        replayed(read_run(planted[0]), 3, 1)
