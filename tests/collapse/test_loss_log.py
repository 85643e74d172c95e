"""Logs of other trainers: the losses are found whatever a trainer calls them, and the rules judge them."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altgrad.__main__ import main
from altgrad.collapse.loss_log import read_loss_log

# The same two steps as the trainers print them, and what stands there: names of loss, step and held-out loss.
LOGS: Mapping[str, tuple[str, tuple[str, str | None, str | None]]] = {
    "nanoGPT": (
        "tokens per iteration will be: 491,520\nstep 0: train loss 9.9, val loss 9.5\n"
        "iter 10: loss 3.5, time 312.20ms, mfu 12.1%\niter 20: loss 2.25, time 312.20ms, mfu 12.1%\n",
        ("loss", "iter", "val loss"),
    ),
    "llm.c": ("s:0 tel:9.5\ns:10 trl:3.5 lr:0.0006 norm:1.2\ns:20 trl:2.25 lr:0.0006 norm:1.2\n", ("trl", "s", "tel")),
    "Megatron-LM": (
        " [2024-01-01 10:00] iteration    10/    20 | elapsed time per iteration (ms): 12.3 | lm loss: 3.5E+00 |\n"
        " [2024-01-01 10:01] iteration    20/    20 | elapsed time per iteration (ms): 12.3 | lm loss: 2.25E+00 |\n",
        ("lm loss", "iteration", None),
    ),
    "torchtitan": (
        "[titan] 2025-01-01 10:00:00,123 - root - INFO - \x1b[31mstep: 10  \x1b[32mloss:  3.5000  \x1b[33mtps: 12\n"
        "[titan] 2025-01-01 10:00:00,123 - root - INFO - \x1b[31mstep: 20  \x1b[32mloss:  2.2500  \x1b[33mtps: 12\n",
        ("loss", "step", None),
    ),
    "modded-nanogpt": (
        "step:0/5100 val_loss:9.5 train_time:1ms\nstep:10/5100 train_loss:3.5 train_time:9ms\n"
        "step:20/5100 train_loss:2.25 train_time:9ms\n",
        ("train_loss", "step", "val_loss"),
    ),
    "transformers": (
        json.dumps({"epoch": 1.0, "log_history": [{"loss": 3.5, "step": 10}, {"loss": 2.25, "step": 20}]}),
        ("loss", "step", None),
    ),
    "Lightning": (
        "epoch,step,train_loss,val_loss\n0,5,,9.5\n0,10,3.5,\n0,20,2.25,\n",
        ("train_loss", "step", "val_loss"),
    ),
    "export of Weights & Biases": (
        '"Step","a - loss","a - loss__MIN","a - loss__MAX"\n"10","3.5","3.4","3.6"\n"20","2.25","2","3"\n',
        ("a - loss", "Step", None),
    ),
    "JSON lines, killed while it wrote": (
        '{"_step": 10, "train/loss": 3.5, "ok": true}\n{"_step": 20, "train/loss": 2.25}\n{"_step": 30, "tr',
        ("train/loss", "_step", None),
    ),
}


@pytest.mark.parametrize("trainer", LOGS)
def test_the_losses_of_a_trainer_are_found(trainer: str, tmp_path: Path) -> None:
    text, names = LOGS[trainer]
    file = tmp_path / "a.log"  # the same name for all: the content decides
    file.write_text(text)
    log = read_loss_log(file)
    assert [(row["step"], row["loss"]) for row in log.records] == [(10, 3.5), (20, 2.25)]
    assert (log.loss_name, log.step_name, log.held_out_name) == names
    assert [row.get("validation_loss") for row in log.records] == [9.5 if names[2] else None, None]


def test_parquet_is_known_by_its_first_bytes_and_an_empty_cell_is_no_measurement(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    pq.write_table(pa.table({"step": [1, 2, 3], "loss": [3.5, None, math.nan]}), file)
    (one, two) = read_loss_log(file).records
    assert (one["step"], one["loss"], two["step"]) == (1, 3.5, 3) and math.isnan(two["loss"])


def test_rows_are_counted_where_a_log_has_no_steps_and_a_restart_repeats_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("loss,grad_norm\n3,1\n2,1\n")
    (tmp_path / "b.log").write_text("step 1 loss 3\nstep 2 loss 2\nstep 1 loss 9\nstep 2 loss 9\nstep 3 loss 1\n")
    counted, restarted = read_loss_log(tmp_path / "a.csv"), read_loss_log(tmp_path / "b.log")
    assert counted.step_name is None and [row["step"] for row in counted.records] == [1, 2]
    assert [row["loss"] for row in restarted.records] == [3, 2, 1] and restarted.repeated == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no numbers with a name"),
        ("3\n2\n1\n", "no numbers with a name"),
        ("step,accuracy\n1,0.5\n", "no column is a training loss by its name; --loss says which is: step, accuracy"),
        ("step,val_loss\n1,0.5\n", "no column is a training loss"),
        (
            "step,a/loss,b/loss\n1,0.5,2\n",
            "several columns may be the training loss; --loss says which: a/loss, b/loss",
        ),
        (
            '{"step": 1, "loss": 2}\n{"step\n{"step": 2, "loss": 2}\n',
            'line 2 is no JSON, though the first one is: {"step',
        ),
    ],
)
def test_what_is_no_log_of_losses_is_refused_in_one_line_with_its_name(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"a\.txt: ") as error:
        read_loss_log(file)
    assert reason in str(error.value) and "\n" not in str(error.value)


def log_of(file: Path, losses: Mapping[int, float]) -> str:
    file.write_text("step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in losses.items()))
    return str(file)


@pytest.mark.parametrize("line", [
    "step {step:,}/5,000 loss {loss:.3f}\n", "step {step:_}: train loss {loss:.3f}, lr 3e-4\n",
    '{{"step": "{step:,}", "loss": {loss}}}\n', "{{'step': {step:,}, 'loss': {loss:.3f}, 'epoch': 0.5}}\n",
])  # fmt: skip
def test_no_step_is_lost_where_its_thousands_are_grouped(line: str, tmp_path: Path) -> None:
    given = {step: 5 - step / 1000 for step in range(900, 1300, 100)} | {1_000_000: 0.5}
    (tmp_path / "log").write_text("".join(line.format(step=step, loss=loss) for step, loss in given.items()))
    found = read_loss_log(tmp_path / "log")
    assert {row["step"]: row["loss"] for row in found.records} == pytest.approx(given)
    assert found.step_name == "step"


def test_a_large_loss_is_read_and_a_decimal_comma_is_not_taken_for_thousands(tmp_path: Path) -> None:
    (tmp_path / "large.csv").write_text('step,loss\n1,"4,123.5"\n2,"1,000.25"\n3,999.5\n')
    assert [row["loss"] for row in read_loss_log(tmp_path / "large.csv").records] == [4123.5, 1000.25, 999.5]
    for name, text in (("comma.csv", "step;loss\n1;4,123\n2;3,999\n"), ("comma.txt", "step 1 loss 4,123\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="no column is a training loss"):
            read_loss_log(tmp_path / name)


def test_losses_without_a_step_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,3.0\n,2.9\nn/a,2.8\n2,2.7\n2,2.6\n3,\n4,2.5\n")
    found = read_loss_log(tmp_path / "log.csv")
    assert ([row["step"] for row in found.records], found.repeated, found.without_step) == ([1, 2, 4], 1, 2)
    main(["judge", str(tmp_path / "log.csv")])
    assert "2 rows have a loss and no step" in " ".join(capsys.readouterr().out.split())


def test_judge_says_which_rule_and_from_which_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # `non_finite_patience` is 5 steps: NaN from step 60 on is judged at step 64, four NaN in the middle are not.
    fall = {step: 2 + 3.0 * 0.97**step for step in range(1, 201)}
    healthy = log_of(tmp_path / "spike.csv", fall | dict.fromkeys(range(60, 64), math.nan))
    broken = log_of(tmp_path / "broken.csv", fall | dict.fromkeys(range(60, 201), math.nan))
    assert main(["judge", healthy]) == 0
    assert "200 losses from 'loss', steps 1 to 200" in (told := capsys.readouterr().out) and "no rule judges" in told
    assert main(["judge", broken]) == 1
    assert "collapsed: non_finite at step 64" in capsys.readouterr().out
    assert main(["judge", broken, "--set", "non_finite_patience=9"]) == 1
    assert "non_finite at step 68" in capsys.readouterr().out


def test_judge_is_told_the_entropy_of_the_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = log_of(tmp_path / "run.csv", {step: 3.2 + 2.3 * math.exp(-step / 5) for step in range(1, 401)})
    told = ["judge", file, "--vocabulary", "256"]
    assert main(told) == 0
    assert main([*told, "--unigram-entropy", "3.2"]) == 1
    assert "collapsed: no_context at step 240" in capsys.readouterr().out  # 0.6 of 400
    assert main([*told, "--unigram-entropy", "3.5"]) == 0, "0.3 nats below the frequencies"


def test_judge_compares_with_the_log_of_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = {step: 2 + 3.0 * 0.97**step for step in range(1, 401)}
    behind = {step: loss if step <= 50 else 4.5 for step, loss in baseline.items()}
    logs = log_of(tmp_path / "bf16.csv", baseline), log_of(tmp_path / "fp8.csv", behind)
    assert main(["judge", logs[1], "--baseline", logs[0]]) == 1
    assert main(["judge", logs[0], "--baseline", logs[0]]) == 0
    assert "without --baseline" not in capsys.readouterr().out.split("collapsed")[1]


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("vocabulary", [[], ["--vocabulary", "256"]])
def test_judge_does_not_call_the_second_half_of_a_healthy_log_a_run_that_never_learned(
    every: int, vocabulary: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    whole = {step: 0.9 + 4.6 * math.exp(-step / 300) + rng.gauss(0, 0.02) for step in range(every, 4001, every)}
    parts = {"whole": whole, "late": {step: loss for step, loss in whole.items() if step > 2000}}
    for name, losses in parts.items():
        assert main(["judge", log_of(tmp_path / f"{name}.csv", losses), *vocabulary]) == 0
        said = capsys.readouterr().out
        assert (f"the log begins with step {2000 + every}" in said) == (name == "late")
    flat = {step: 5.54 + rng.gauss(0, 0.02) for step in range(2001, 4001)}
    if vocabulary:  # a uniform model has learned nothing, wherever the log begins
        assert main(["judge", log_of(tmp_path / "flat.csv", flat), *vocabulary]) == 1


def test_judge_finds_a_gap_to_a_baseline_that_logs_every_tenth_step_no_later_than_to_one_that_logs_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {step: 2 + 3.5 * math.exp(-step / 200) for step in range(1, 2001)}
    run = log_of(tmp_path / "run.csv", {step: loss + 0.4 * min(1.0, step / 100) for step, loss in losses.items()})
    found = []
    for every in (1, 10):
        logged = {step: loss for step, loss in losses.items() if step % every == 0}
        baseline = log_of(tmp_path / f"{every}.csv", logged)
        assert main(["judge", run, "--vocabulary", "256", "--baseline", baseline]) == 1
        said = re.search(r"gap_to_baseline at step (\d+)", capsys.readouterr().out)
        assert said is not None
        found.append(int(said[1]))
    assert abs(found[1] - found[0]) <= 30


def test_judge_takes_thresholds_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = log_of(tmp_path / "a.csv", {1: 2.0})
    assert main(["judge", file, "--set", "format=E4M3"]) == 2
    assert "--set format: no threshold of a rule" in capsys.readouterr().err


def test_judge_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, elsewhere = log_of(tmp_path / "a.csv", {1: 2.0, 2: 1.9}), log_of(tmp_path / "b.csv", {5: 2.0})
    for words, said in (
        (["--baseline", elsewhere], "b.csv: no step of it is among those of"),
        (["--set", "diverged_patience=0"], "--set"),
    ):
        assert main(["judge", file, *words]) == 2
        told = capsys.readouterr()
        assert said in told.err and len(told.err.splitlines()) == 1 and not told.out


def test_numbers_that_no_trainer_writes_break_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"step": 1, "loss": 2}}\n{{"step": {10**400}, "loss": 3}}\n{{"step": 1e300, "loss": 4}}\n'
    )
    assert [row["loss"] for row in read_loss_log(tmp_path / "a.jsonl").records] == [2]
    (tmp_path / "b.csv").write_text("step,loss\n1," + "9" * 200_000 + "\n")  # a field above the limit of the library
    with pytest.raises(ValueError, match=r"b\.csv: "):
        read_loss_log(tmp_path / "b.csv")
