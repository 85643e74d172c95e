"""`--seeds auto`: the seeds that are added after each round, from results written by hand; no Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from altgrad.compare import Row, comparison, planned_terms
from altgrad.compare.parity.verdict import Parity
from altgrad.config.train_config import TrainConfig
from altgrad.results import Verdict, list_runs
from tests.support.results.written_runs import write_run
from tests.support.runs.sweep_plans import CPU_BOX, planned
from tune.plan.more_seeds import LOOKS, MoreSeeds, _with_seeds
from tune.plan.options import SweepError, parse_options
from tune.plan.resources.machine import Resources
from tune.plan.sweep_record import PlannedSweep, create_sweep, open_sweep
from tune.plan.trial import Trial
from tune.plan.trials import plan_sweep
from tune.sweep import main

ENDS = {"E4M3": 0.0, "E5M2": 0.5, "E3M4": 0.01, "E7M0": 0.3}  # nats behind BF16


def sweep_of(tmp_path: Path, *more: str) -> PlannedSweep:
    words = [
        "--formats",
        *ENDS,
        "--seeds",
        "auto",
        "--margin",
        "0.02",
        "--results",
        str(tmp_path),
        "--name",
        "s",
        *more,
    ]
    options = parse_options(words)
    return create_sweep(options, plan_sweep(options, CPU_BOX), Resources(1, 0, 2))


def train(sweep: PlannedSweep, trials: list[Trial], spread: dict[str, float]) -> list[Row]:
    """Each run ends at the loss of its format, with a deviation that is drawn for its format and seed."""
    for trial in trials:
        fmt, seed = trial.config.format, trial.config.seed
        draw = float(np.random.default_rng([seed, sum(map(ord, fmt))]).normal())
        end = 2.0 + ENDS.get(fmt, 0.0) + spread.get(fmt, 0.001) * draw
        dead = fmt == "E7M0" and seed % 2 == 1
        write_run(sweep.folder, trial.run, {100: 9.0 if dead else end}, config=trial.config.model_dump(),
                  status="collapsed" if dead else "completed",
                  verdict=Verdict(90, "stalled", "loss", 1.0, 2.0) if dead else None)  # fmt: skip
    return comparison(list_runs(sweep.folder)[0], planned_terms(sweep.folder))


def test_rounds_add_seeds_where_needed_until_all_is_decided_or_the_budget_is_spent(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "--max-seeds", "8")
    assert len(sweep.trials) == 3 * 5 and planned_terms(sweep.folder).looks == LOOKS == 3
    rows = train(sweep, list(sweep.trials), {"E3M4": 0.012})
    assert sweep.more_seeds is not None
    verdicts = {row.format: row.parity.verdict for row in rows if row.parity is not None}
    assert verdicts == {"E4M3": "equivalent", "E5M2": "worse", "E3M4": "undecided", "E7M0": "collapsed"}
    added, said = sweep.more_seeds.next_round(sweep.trials, rows)
    assert {trial.config.format for trial in added} == {"E3M4", "BF16"}, "decided and dead groups get no seeds"
    assert len(said) == 1 and said[0].startswith("E3M4: 3 seeds are too few, goes on to")
    seeds = sorted(trial.config.seed for trial in added if trial.config.format == "E3M4")
    first = sweep.trials[0].config.seed
    assert seeds == list(range(first + 3, first + 3 + len(seeds))), "the seeds that follow"
    names = {trial.run: trial for trial in added}
    for trial in added:
        if trial.config.format != "BF16":
            assert trial.baseline in names and names[trial.baseline].config.seed == trial.config.seed
    assert [trial.is_baseline for trial in added] == sorted((trial.is_baseline for trial in added), reverse=True)

    longer = sweep.extended(added)
    again = open_sweep(parse_options(["--resume", "s", "--results", str(tmp_path)]))
    assert (again.trials, again.more_seeds, again.shares) == (longer.trials, MoreSeeds(8, 3, 1), longer.shares)
    assert longer.shares is not None and set(longer.shares.runs_alike) == {trial.run for trial in longer.trials}
    alike = {trial.config.format: sweep.shares.runs_alike[trial.run] for trial in sweep.trials} if sweep.shares else {}
    assert min(alike.values()) > 1, "or nobody could see whether an added seed is compiled as its group was"
    assert all(longer.shares.runs_alike[trial.run] == alike[trial.config.format] for trial in added)
    assert [trial.run for trial in again.unfinished()] == [trial.run for trial in added], "killed here, it goes on here"

    rows = train(longer, added, {"E3M4": 0.012})
    last, said = again.more_seeds.next_round(again.trials, rows) if again.more_seeds else ([], [])
    assert {row.parity.verdict for row in rows if row.parity and row.format == "E3M4"} == {"undecided"}
    whole = [trial for trial in (*again.trials, *last) if trial.config.format == "E3M4"]
    assert len(whole) == 8 and said, "the last round spends the budget"
    over = MoreSeeds(8, 3, rounds=2)
    assert over.next_round(again.trials, rows)[0] == []


@pytest.mark.parametrize(
    ("rounds", "needed", "target"),
    [
        (0, 5, 5),
        (0, 8, 8),
        (0, 16, 8),  # the spread of three seeds is known roughly: up to twice the budget is tried
        (0, 17, None),
        (0, None, None),
        (1, 5, 8),  # the last round spends it
        (1, 17, None),
        (2, 5, None),
    ],
)
def test_a_group_gets_what_its_verdict_asks_for_within_the_budget(
    rounds: int, needed: int | None, target: int | None
) -> None:
    rule = MoreSeeds(most=8, looks=3, rounds=rounds)
    assert rule._target(cast("Parity", SimpleNamespace(seeds=needed, ended_early=0))) == target
    assert rule._target(cast("Parity", SimpleNamespace(seeds=needed, ended_early=1))) is None


def test_added_seeds_follow_the_highest_one_in_whatever_order_the_runs_are_read() -> None:
    own = [Trial(f"e4m3-s{seed}+clip", TrainConfig(format="E4M3", seed=seed), "clip", "b") for seed in (44, 42, 43)]
    added = _with_seeds(own, 2)
    assert [(trial.run, trial.config.seed) for trial in added] == [("e4m3-s45+clip", 45), ("e4m3-s46+clip", 46)]
    assert {(trial.intervention, trial.baseline) for trial in added} == {("clip", None)}


def test_a_hopeless_group_is_given_up_and_said_so(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "--max-seeds", "4")
    rows = train(sweep, list(sweep.trials), {"E3M4": 0.3})
    assert sweep.more_seeds is not None
    added, said = sweep.more_seeds.next_round(sweep.trials, rows)
    assert added == [] and len(said) == 1 and said[0].startswith("E3M4 stays undecided with 3 seeds:")


def test_several_looks_at_growing_data_keep_wrong_verdicts_rare() -> None:
    from altgrad.compare.parity.verdict import LEVEL, judged

    rng, wrong, tables = np.random.default_rng(2), 0, 1200
    for _ in range(tables):
        values = rng.normal(0.01, 0.004, 12)  # exactly at the margin: any claim is wrong
        for n in (3, 6, 12):
            (found,) = judged([Parity("no claim", 0.01, differences=tuple(values[:n].tolist()), runs=n)], LOOKS)
            if found.verdict != "undecided":
                wrong += 1
                break
    assert wrong / tables <= LEVEL + 3 * np.sqrt(LEVEL / tables)


def test_the_plan_says_it_and_contradictions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--formats", "E4M3", "--seeds", "auto", "--max-seeds", "6", "--results", str(tmp_path)]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "begins with 3 seeds, then adds seeds, BF16 included, in at most 2 rounds" in said
    assert "has 6; at most 12 trials" in said and not list(tmp_path.iterdir())
    for wrong in (["--seeds", "2", "--max-seeds", "6"], ["--seeds", "auto", "--max-seeds", "2"],
                  ["--seeds", "auto", "--no-baseline"]):  # fmt: skip
        with pytest.raises(SweepError):
            MoreSeeds.of(parse_options(wrong))
        assert main([*wrong, "--results", str(tmp_path), "--dry-run"]) == 2
    assert len(planned("--formats", "E4M3", "--seeds", "auto")) == 6


def test_the_sweep_trains_round_after_round_and_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command but for Ray: what a trial would leave behind is written instead of trained."""
    rounds: list[list[str]] = []

    def trained(self: object, sweep: PlannedSweep, trials: list[Trial], *others: object) -> None:
        rounds.append([trial.run for trial in trials])
        train(sweep, trials, {"E3M4": 0.012})
        if len(rounds) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("tune.sweep._Course._train", trained)
    monkeypatch.setattr("tune.sweep._Course._place", lambda *_: tmp_path)
    words = ["--formats", *ENDS, "--seeds", "auto", "--max-seeds", "8", "--margin", "0.02", "--wandb", "disabled"]
    assert main([*words, "--results", str(tmp_path), "--name", "s"]) == 130
    assert main(["--resume", "s", "--results", str(tmp_path), "--wandb", "disabled"]) == 0
    assert [len(names) for names in rounds] == [15, 10]
    assert len({name for names in rounds for name in names}) == sum(map(len, rounds)), "no run is trained twice"
    table = (tmp_path / "s" / "comparison.md").read_text()
    assert "and for 3 looks at a growing number of seeds" in table and "margin 0.02 nats" in table
