"""The benchmark of collapse rules: its truth, its statistics and the published rules of others, by hand and by scipy.

At the end a few tiny runs: a planted fault is caught, a spike that heals is not.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest, mannwhitneyu

from altgrad.collapse.forecast import LIMIT, METRIC
from bench.detectors.forecast import Signal, auc, forecast
from bench.detectors.own_rules import stopped
from bench.detectors.recording import Recording, train
from bench.detectors.rivals import RIVALS
from bench.detectors.scenarios import BASE, Plan
from bench.detectors.scoring import Judged, score, wilson
from bench.detectors.truth import Outcome, outcome

STEPS = 320


def recording(
    loss: Callable[[int], float] = lambda step: 2.0,
    held_out: Callable[[int], float] = lambda step: 5.0 - 3.0 * step / STEPS,
    onset: int = 1,
    scenario: str = "x",
    **columns: Callable[[int], Any],
) -> Recording:
    """A run of 320 steps with held-out losses every 20, written by hand."""
    rows = [
        {"step": step, "loss": loss(step), "non_finite_gradients": 0.0, **{n: f(step) for n, f in columns.items()}}
        for step in range(1, STEPS + 1)
    ]
    held = {step: held_out(step) for step in range(0, STEPS + 1, 20)}
    return Recording(Plan(scenario, 1, {}, onset=onset), 256, rows, held)


TWIN = recording()  # learns 3 nats: from 5 to 2, its last three measurements have the mean 2.1875


@pytest.mark.parametrize(
    ("held_out", "kind", "lost", "visible"),
    [
        (lambda step: 5.0 - 3.0 * step / STEPS, "healthy", 0.0, None),
        (lambda step: 5.0 - 2.88 * step / STEPS, "healthy", 0.12 * 300 / 320 / 3, None),  # 3.75 %
        (lambda step: 5.0 - 2.79 * step / STEPS, "undecided", 0.21 * 300 / 320 / 3, None),  # 6.6 %
        (lambda step: 5.0 - 2.39 * step / STEPS, "collapsed", 0.61 * 300 / 320 / 3, 160),  # 19 %, 10 % from step 158 on
        (
            lambda step: 5.0 if step < 160 else 5.0 - 5.6 * (step - 160) / STEPS,
            "undecided",
            0.3625 / 3,
            None,
        ),  # catches up
        (lambda step: math.nan if step == 320 else 2.0, "collapsed", math.inf, 320),
    ],
)
def test_a_run_is_judged_by_what_it_lacks_of_its_twins_progress(
    held_out: Callable[[int], float], kind: str, lost: float, visible: int | None
) -> None:
    found = outcome(recording(held_out=held_out), TWIN)
    assert (found.kind, found.visible) == (kind, visible)
    assert found.lost == pytest.approx(lost)


def test_a_run_whose_last_gradients_are_mostly_not_finite_collapsed() -> None:
    run = recording()
    for row in run.rows[-41:]:
        row["non_finite_gradients"] = 0.5
    assert outcome(run, TWIN).kind == "collapsed"
    run.rows[-41]["non_finite_gradients"] = 0.0
    assert outcome(run, TWIN).kind == "healthy"


def test_a_score_counts_stops_before_the_fault_as_false() -> None:
    def judged(name: str, kind: Any, onset: int = 1) -> Judged:
        return Judged(recording(onset=onset, scenario=name), Outcome(kind, 0.0))

    runs = [
        judged("a", "healthy"), judged("b", "healthy"), judged("c", "undecided"), judged("d", "collapsed"),
        judged("e", "collapsed", onset=100), judged("f", "collapsed", onset=100), judged("g", "collapsed", onset=100),
    ]  # fmt: skip
    stops = dict.fromkeys((f"{name}-s1" for name in "abcdefg"), None)
    found = score(runs, stops | {"b-s1": 160, "c-s1": 10, "d-s1": 20, "e-s1": 99, "f-s1": 140})
    assert (found.caught, found.collapsed, found.false, found.chances) == (2, 4, 2, 5)
    assert (found.delays, found.delay, found.undecided) == ((19, 40), 29.5, (1, 1))
    assert found.saved == pytest.approx((300 + 180) / (4 * STEPS))
    assert found.wasted == pytest.approx(160 / (2 * STEPS))


@pytest.mark.parametrize("hits, number", [(0, 80), (1, 80), (40, 41), (41, 41), (7, 9)])
def test_the_interval_is_that_of_scipy(hits: int, number: int) -> None:
    expected = binomtest(hits, number).proportion_ci(method="wilson")
    assert wilson(hits, number) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_auc_is_the_statistic_of_mann_and_whitney() -> None:
    rng = random.Random(0)
    for _ in range(20):
        bad = [rng.randrange(12) for _ in range(rng.randrange(1, 15))]
        good = [rng.randrange(8) for _ in range(rng.randrange(1, 15))]
        assert auc(bad, good) == pytest.approx(mannwhitneyu(bad, good).statistic / (len(bad) * len(good)))


def test_a_signal_that_rises_before_the_verdict_announces_the_collapse() -> None:
    def judged(name: str, kind: Any, stall: Callable[[int], float], onset: int = 1) -> Judged:
        return Judged(recording(stall_rate=stall, onset=onset, scenario=name), Outcome(kind, 0.0))

    calm = [judged(f"calm{k}", "healthy", lambda step, k=k: k / 100) for k in range(20)]
    rises = [judged(f"loud{at}", "collapsed", lambda step, at=at: 0.9 if step >= at else 0.05, 80) for at in (100, 160)]
    ends = dict.fromkeys((one.name for one in calm), None) | {"loud100-s1": 160, "loud160-s1": 160}
    found = forecast(Signal("stall_rate", "value", "high"), [*calm, *rises], ends)
    assert found is not None
    assert found.limit == 0.18  # one of the twenty healthy runs lies above it
    assert (found.alarms, found.false, found.leads) == ((1, 2), (1, 20), (60,))
    assert found.auc == pytest.approx((20 + 5.5) / 40)  # 0.9 above all; 0.05 above five and equal to one


# Where each rule stops a run, worked out by hand from its publication; 2.0 is the loss of every other step.
BY_HAND: Mapping[str, tuple[Mapping[str, Callable[[int], Any]], int | None]] = {
    "loss not finite": ({"loss": lambda s: math.inf if s == 7 else 2.0}, 7),
    "loss > 3 x its moving average": ({"loss": lambda s: 6.1 if s == 50 else 2.0}, 50),
    "loss >= 10 x the largest of the first 100": ({"loss": lambda s: {5: 3.0, 150: 29.9, 200: 30.1}.get(s, 2.0)}, 200),
    "loss > 2 x the mean of 100, 5 times": ({"loss": lambda s: 9.0 if 150 <= s < 154 or s >= 200 else 2.0}, 204),
    "z of the gradient norm > 2.5": ({"gradient_norm": lambda s: 1.3 if s == 40 else 1.0 + 0.1 * (-1) ** s}, 40),
    "update RMS of the embedding >= 2.3": ({"update_rms": lambda s: [2.31 if s == 9 else 1.0, 9.0]}, 9),
    "held-out loss 5 % above its lowest": ({"held_out": lambda s: 2.0 if s < 200 else 2.11}, 200),
    "no lower held-out loss 3 times": ({"held_out": lambda s: 3.0 - s / 400 if s <= 200 else 2.7}, 260),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_rule_of_others_stops_where_its_publication_says(name: str) -> None:
    rival = next(rival for rival in RIVALS if rival.name == name)
    columns, expected = BY_HAND[name]
    assert rival.limit is not None
    assert rival.stop(recording(**columns), rival.limit) == expected  # type: ignore[arg-type]
    steady = recording(gradient_norm=lambda s: 1.0, update_rms=lambda s: [1.0])
    assert rival.stop(steady, rival.limit) is None


def test_the_ratios_without_a_published_limit_are_those_of_their_papers() -> None:
    by_name = {rival.name.split(" ")[0]: rival for rival in RIVALS if rival.limit is None}
    run = recording(
        gradient_norms=lambda s: [1.0, 8.0 if s == 60 else 2.0],
        sign_diversity=lambda s: [0.4, 0.01 if s == 100 else 0.3] if s % 20 == 0 else None,
        largest_singular=lambda s: [1.0 + s / 20, 5.0] if s % 20 == 0 else None,
    )
    assert by_name["gradient"].scores(run, 0)[60] == pytest.approx(4.0)
    assert by_name["sign"].scores(run, 0)[100] == -0.01
    assert by_name["growth"].scores(run, 0)[200] == pytest.approx(11 / 2)


TINY: Mapping[str, Any] = {
    **BASE, "task": "regression", "compile": False, "batch_size": 64,
    "learning_rate": 1e-2, "eval_batches": 1, "max_steps": 240, "log_stiffness": False, "log_grid_alignment": False,
    "log_ulp": False, "use_shadow": False,
}  # fmt: skip
PLANTED = {
    "nan": ([{"kind": "nan", "from": 60}], "non_finite"),
    "rate": ([{"kind": "rate", "from": 100, "factor": 200.0}], "rank_collapse"),
    "healing spike": ([{"kind": "rate", "from": 100, "to": 102, "factor": 15.0}], None),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_and_a_spike_that_heals_is_not(name: str) -> None:
    faults, rule = PLANTED[name]
    run = train(Plan(name, 1, TINY, faults, onset=faults[0]["from"]))
    if rule is None:
        before, top = run.losses[99], max(run.losses[step] for step in range(100, 110))
        assert top > 1.5 * before  # it is a spike
        assert stopped(run, None) is None
        return
    found = stopped(run, None)
    assert found is not None and found[1] == rule
    assert found[0] >= faults[0]["from"]


def test_the_warning_has_the_limit_that_the_benchmark_chose() -> None:
    record = json.loads((Path(__file__).parents[2] / "docs" / "results" / "detectors.json").read_text())
    (chosen,) = [one for one in record["forecast"] if one["metric"] == METRIC.name]
    assert (chosen["form"], chosen["bad"]) == ("value", "low") and round(-chosen["limit"], 2) == LIMIT
