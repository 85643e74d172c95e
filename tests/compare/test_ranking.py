"""Who is ranked: a group in which a run died is never best, ahead of the baseline, or on the front."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad.compare import (
    Row,
    all_pairs,
    by_group,
    by_task,
    collapse_step,
    comparison,
    group_difference,
    paired_gap,
    parity_lines,
    ranking,
    rate_lines,
    rescue_matrix,
    tasks_note,
)
from altgrad.compare.comparison_table import notes_of
from altgrad.html import html_report
from altgrad.html.board.drawings import Bars
from altgrad.report import sweep_report
from altgrad.results import Verdict, list_runs
from altgrad.show.sweep_progress import best_sentence
from altgrad.storage.folder import Folder
from altgrad.text.foreign_text import as_markdown
from dashboard.data.sweep_frame import group_frame
from dashboard.figures.group_figures import pareto
from tests.support.html_tree import parse
from tests.support.results.written_runs import COLLAPSED, HASHES, curve, row, write_run

NAN = math.nan


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep")


def dead_and_alive(sweep: Folder, dead_seeds: tuple[int, ...], with_whole: bool) -> list[Row]:
    """E7M0 lies ahead of BF16 until it dies in some seeds; E4M3 (where there is any) is a little behind."""
    for seed in (1, 2, 3):
        at = {"seed": seed, "max_steps": 100}
        write_run(sweep, f"bf16-{seed}", curve(range(10, 101, 10), 2.0), config=at)
        if with_whole:
            write_run(sweep, f"e4m3-{seed}", curve(range(10, 101, 10), 2.1), config=at | {"format": "E4M3"})
        good = curve(range(10, 101, 10), 1.5 + seed / 1000)
        if seed in dead_seeds:
            early = {step: loss for step, loss in good.items() if step <= 30}
            write_run(sweep, f"e7m0-{seed}", early, config=at | {"format": "E7M0"}, status="collapsed",
                      verdict=COLLAPSED)  # fmt: skip
        else:
            write_run(sweep, f"e7m0-{seed}", good, config=at | {"format": "E7M0"})
    return comparison(list_runs(sweep)[0])


@pytest.mark.parametrize("dead", [(2,), (1, 3), (1, 2, 3)])
def test_a_group_with_a_collapse_is_never_best_ahead_or_on_the_front(sweep: Folder, dead: tuple[int, ...]) -> None:
    rows = dead_and_alive(sweep, dead, with_whole=True)
    assert ranking(rows)[0][0][0].format == "E4M3"
    assert best_sentence(rows).startswith("**E4M3**") and "0 of 3 collapsed" in best_sentence(rows)
    assert "E7M0" not in {row.format for row, _, _, best in pareto(rows) if best}
    front = {row.format for row, _, _, best in pareto(rows) if best}
    assert "E4M3" in front, "a dead group takes the front from nobody"
    said = paired_gap([row for row in rows if row.format == "E7M0"]).sentence
    assert f"{len(dead)} of 3 collapsed" in said and "ahead of" not in said and "behind" not in said
    ends_early = [not row.alive for row in rows]
    assert ends_early == sorted(ends_early), "the table begins with the runs that lasted"
    assert "E4M3" in parse(html_report(sweep, 0.0)).one("section", **{"aria-labelledby": "overview"}).text


def test_where_every_group_has_a_collapse_the_best_is_named_as_such(sweep: Folder) -> None:
    rows = dead_and_alive(sweep, (2,), with_whole=False)
    assert "No group is without a collapse" in best_sentence(rows) and "1 of 3 collapsed" in best_sentence(rows)


def test_a_format_is_not_worse_than_a_baseline_that_died_in_the_same_seeds(sweep: Folder) -> None:
    for fmt, dead in (("BF16", (1, 2)), ("E7M0", (1, 2)), ("E4M3", (1, 3)), ("E5M2", ())):
        for seed in (1, 2, 3):
            losses = curve(range(10, 31 if seed in dead else 101, 10), 2.0 + seed / 1000)
            config = {"seed": seed, "max_steps": 100, "format": fmt}
            ending = {"status": "collapsed", "verdict": COLLAPSED} if seed in dead else {}
            write_run(sweep, f"{fmt}-{seed}", losses, config=config, info=HASHES, **ending)
    rows = comparison(list_runs(sweep)[0])
    said = {row.format: row.parity.sentence for row in rows if row.parity is not None}
    assert said["E7M0"] == "no claim: of BF16, 2 of 3 collapsed or reached NaN"
    assert said["E4M3"] == "not as good as BF16: 2 of 3 collapsed", "BF16 lived in seed 3"
    groups = {members[0].format: members for members in by_group(rows).values()}
    assert group_difference(groups["E4M3"], groups["E5M2"]).parity.sentence == "not as good as E5M2: 2 of 3 collapsed"
    assert group_difference(groups["E5M2"], groups["E4M3"]).parity.verdict == "no claim"
    assert group_difference(groups["E7M0"], groups["E4M3"]).parity.verdict == "no claim"


def test_a_run_that_went_on_after_its_verdict_counts_as_collapsed(sweep: Folder) -> None:
    write_run(sweep, "bf16", {50: 2.0, 100: 1.5})
    write_run(sweep, "e7m0", {50: 2.0, 100: 1.0}, config={"format": "E7M0"}, verdict=COLLAPSED)
    rows = comparison(list_runs(sweep)[0])
    cell = rescue_matrix(rows)["E7M0", "", "none"]
    assert (cell.survived, cell.ended, cell.gap.mean) == (0, 1, None)
    assert "needs a BF16 run" in best_sentence(rows)


def test_a_run_that_ended_in_nan_makes_its_group_no_winner(sweep: Folder) -> None:
    for seed in (1, 2):
        write_run(sweep, f"bf16-{seed}", {100: 2.0}, config={"seed": seed})
        write_run(sweep, f"e4m3-{seed}", {100: 2.1}, config={"seed": seed, "format": "E4M3"})
        losses = {100: 1.0 if seed == 1 else NAN}
        write_run(sweep, f"e5m2-{seed}", losses, config={"seed": seed, "format": "E5M2"})
    rows = comparison(list_runs(sweep)[0])
    assert best_sentence(rows).startswith("**E4M3**")
    assert {row.format for row, _, _, best in pareto(rows) if best} >= {"E4M3"}
    assert "E5M2" not in {row.format for row, _, _, best in pareto(rows) if best}


def test_a_collapse_step_of_a_group_is_the_median_everywhere(sweep: Folder) -> None:
    for seed, step in enumerate((10, 20, 90), start=1):
        verdict = Verdict(step, "stalled", "loss", 1.0, 2.0)
        write_run(sweep, f"r{seed}", {5: 3.0}, config={"seed": seed, "format": "E7M0"}, status="collapsed",
                  verdict=verdict)  # fmt: skip
    rows = comparison(list_runs(sweep)[0])
    assert collapse_step(rows) == 20.0 == rescue_matrix(rows)["E7M0", "", "none"].median_collapse_step
    assert group_frame(rows)["collapse_step"].tolist() == [20.0]


def test_the_losses_of_a_group_are_those_of_its_runs_alive_that_came_furthest() -> None:
    losses = {"validation_loss": 9.0, "best_validation_loss": 2.2}
    rows = [
        row(1, validation_loss=2.0, best_validation_loss=1.9, validation_step=100),
        row(2, validation_loss=3.0, best_validation_loss=2.5, validation_step=100),
        row(3, **losses, validation_step=50, status="running"),
        row(4, validation_loss=0.5, best_validation_loss=0.4, validation_step=100, status="collapsed", collapse_step=9),
    ]
    (group,) = group_frame(rows).to_dict("records")
    assert (group["validation_loss"], group["best_validation_loss"]) == (2.5, 1.9)


def test_other_ends_than_collapse_are_named_in_the_matrix(sweep: Folder) -> None:
    for seed, status in enumerate(("failed", "stopped", "stopped", None, "completed"), start=1):
        write_run(sweep, f"r{seed}", {5: 3.0}, config={"seed": seed, "format": "E7M0"}, status=status)
    (line, *_) = rescue_matrix(comparison(list_runs(sweep)[0]))["E7M0", "", "none"].lines
    assert line == "1 of 1 (+1 failed, 1 running, 2 stopped)"


# What makes losses another quantity: fields of the config, or what the runs recorded of their task and model.
OTHER_TASK: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "model": ({"n_embd": 64}, {"parameters": 4000}),
    "own model": ({}, {"parameters": 4000}),
    "sequence length": ({"block_size": 32}, {}),
    "own task": ({}, {"task_hash": "b" * 16}),
    "unit": ({}, {"task_hash": "b" * 16, "unit": "squared error"}),
    "steps": ({"max_steps": 200}, {}),
}
FORMATS = {"BF16": (0.0, 0.0), "E4M3": (0.004, 0.2), "E5M2": (0.05, 0.03), "E7M0": (0.4, 0.001)}  # gap in either task


def trained(sweep: Folder, number: int, name: str) -> dict[str, dict[tuple[int, float], float]]:
    """Write the runs of one task; format -> (seed, rate) -> final loss, of the second task 100 x as large."""
    size, found = (1.0, 100.0)[number], {}
    config, info = OTHER_TASK[name] if number else ({}, {})
    for at, (fmt, gaps) in enumerate(FORMATS.items()):
        for seed, rate in itertools.product((1, 2, 3), (1e-3, 3e-3)):
            noise = 0.001 * math.sin(7 * at + 3 * seed + number) * (fmt != "BF16") + 0.01 * seed
            loss = size * (2.0 + gaps[number] + noise + (0.02 if rate == 3e-3 else 0.0))
            losses = curve(range(10, 101 - 20 * number, 10), loss)  # the second task is measured up to step 80
            fields = {"seed": seed, "max_steps": 100, "format": fmt, "learning_rate": rate}
            dies = fmt == "E7M0" and seed == 3 and not number
            ending: dict[str, Any] = {"status": "collapsed", "verdict": COLLAPSED} if dies else {}
            hashes = HASHES | {"task_hash": "a" * 16, "unit": "nats", "batches_hash": f"{seed}" * 16}
            write_run(
                sweep, f"{number}-{fmt}-{seed}-{rate}", losses, config=fields | config, info=hashes | info, **ending
            )
            found.setdefault(fmt, {})[seed, rate] = loss
    return found


def statements(rows: list[Row]) -> dict[str, Any]:
    """What is said of one task, without the names of its groups, in the order in which it is said."""
    matrix, rates = rescue_matrix(rows), rate_lines(rows)
    return {
        "rows": [(row.run, row.gap, row.gap_step, row.parity and row.parity.sentence) for row in rows],
        "ranking": [([row.run for row in members], gap) for members, gap in ranking(rows)],
        "parity": [line.cells[1:] for line in parity_lines(rows)],
        "rates": [line.cells[1:] for line in rates],
        "front": [(row.run, *facts) for row, *facts in pareto(rows)],
        "rescues": [(cell.runs, cell.lines) for cell in matrix.values()],
        "pairs": [(one.mean, one.low, one.parity.verdict, one.parity.p) for one in all_pairs(rows).values()],
        "best": best_sentence(rows).partition("**: ")[2],
    }


@pytest.mark.parametrize("name", OTHER_TASK)
def test_of_each_of_two_tasks_in_a_sweep_all_is_said_that_is_said_of_it_alone(tmp_path: Path, name: str) -> None:
    both, alone = Folder.at(tmp_path / "both"), [Folder.at(tmp_path / f"task-{number}") for number in (0, 1)]
    losses = [trained(alone[number], number, name) for number in (0, 1)]
    for number in (0, 1):
        trained(both, number, name)
    rows = comparison(list_runs(both)[0])
    tasks = [[row for row in rows if row.run.startswith(f"{number}-")] for number in (0, 1)]
    assert list(by_task(rows).values()) == tasks
    for own, folder in zip(tasks, alone, strict=True):
        assert statements(own) == statements(comparison(list_runs(folder)[0]))
    together = statements(rows)
    for part in together.keys() - {"best"}:
        assert together[part] == [said for own in tasks for said in statements(own)[part]], part
    first, second = best_sentence(rows).split("\n\n")
    assert first.endswith(statements(tasks[0])["best"]) and second.endswith(statements(tasks[1])["best"])
    for number, (own, said) in enumerate(zip(tasks, (first, second), strict=True)):
        died = () if number else ("E7M0",)
        means = {fmt: np.mean([*by_seed.values()]) for fmt, by_seed in losses[number].items()}
        best = min((fmt for fmt in means if fmt not in ("BF16", *died)), key=means.__getitem__)
        assert f"**{best}, " in said
        assert own[0].task_label and f"With {as_markdown(own[0].task_label)}: " in said
    page = parse(html_report(both, 0.0)).one("section", **{"aria-labelledby": "overview"}).text
    assert all(row.task_label in page for row in rows)
    note = tasks_note(rows)
    assert note is not None and note in sweep_report(both) and note in notes_of(rows)
    assert tasks_note(tasks[0]) is None
    assert len({own.span for own in Bars.by_task(*zip(*ranking(rows), strict=True)).values()}) == 2
