"""Statistics over seeds: intervals by hand and against scipy, the rescue matrix, survival."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from altgrad.compare import Terms, comparison_csv, furthest, loss_unit, paired_gap, ranking, rescue_matrix, survival
from altgrad.compare.gap import gap_at, last_common_step, loss_at
from altgrad.compare.statistics import with_parity
from altgrad.results.reading.curves import Curve
from tests.support.results.written_runs import row

NAN = math.nan


def test_a_paired_interval_is_the_t_interval_computed_by_hand() -> None:
    # mean 0.2, standard deviation 0.1, t(0.975, 2) = 4.302653: half width 4.302653 * 0.1 / sqrt(3) = 0.248414
    gap = paired_gap([row(1, 0.1), row(2, 0.2), row(3, 0.3)])
    assert (gap.n, gap.lost) == (3, 0)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.2, -0.048414, 0.448414), abs=1e-6)
    assert gap.sentence == (
        "+0.200 nats [-0.048, +0.448], n = 3, 0 of 3 collapsed: undecided within 0.01 nats: about 5 seeds would "
        "decide it (80 % power)."
    )


def test_a_paired_interval_agrees_with_scipy() -> None:
    gaps = np.random.default_rng(0).normal(0.3, 0.05, 8)
    result = paired_gap([row(seed, float(value)) for seed, value in enumerate(gaps)])
    expected = stats.t.interval(0.95, 7, loc=gaps.mean(), scale=stats.sem(gaps))
    assert (result.low, result.high) == pytest.approx(expected)
    assert result.sentence.endswith("n = 8, 0 of 8 collapsed: worse than BF16 by more than 0.01 nats.")


def test_too_few_seeds_support_no_claim_and_lost_runs_are_counted() -> None:
    two = paired_gap([row(1, 0.1), row(2, 0.3)])
    # t(0.975, 1) = 12.7062, standard error 0.1
    assert (two.low, two.high) == pytest.approx((0.2 - 1.27062, 0.2 + 1.27062), abs=1e-5)
    assert "no claim: too few seeds; run at least 3" in two.sentence
    one = paired_gap([row(1, 0.1), row(2, NAN, step_loss=NAN), row(3, None)])
    assert (one.n, one.lost, one.mean, one.low) == (1, 2, 0.1, None)
    assert (
        "not as good as BF16: 1 of 3 reached NaN or inf" in one.sentence
        and "2 further runs have no finite gap" in one.sentence
    )
    assert paired_gap([]).mean is None
    assert (
        paired_gap([row(1, NAN), row(2, NAN)]).sentence == "No finite gap to a baseline was measured; 0 of 2 collapsed."
    )


def test_a_group_in_which_a_run_reached_nan_and_none_collapsed_is_not_said_to_have_collapsed() -> None:
    nan = row(3, NAN, validation_loss=NAN)
    for third, word in ((nan, "reached NaN"), (row(3, 0.1, status="collapsed", collapse_step=9), "collapsed")):
        rows = with_parity([row(1, 0.1), row(2, 0.2), third], Terms())
        assert {one.parity.word for one in rows if one.parity is not None} == {word}
        parity = [line.split(",")[13] for line in comparison_csv(rows).splitlines()]
        assert parity == ["parity", word, word, word]


def test_runs_of_one_seed_count_once() -> None:
    twice, once = paired_gap([row(1, 0.1), row(1, 0.3), row(2, 0.4)]), paired_gap([row(1, 0.2), row(2, 0.4)])
    assert (twice.n, twice.mean, twice.low, twice.high) == (once.n, once.mean, once.low, once.high)


def test_a_gap_of_nothing_is_a_gap_and_neither_the_baseline_nor_the_dead_are_lost() -> None:
    gap = paired_gap([row(1, 0.0), row(2, 0.5), row(3, None, is_baseline=True), row(4, collapse_step=9)])
    assert (gap.mean, gap.lost, gap.collapsed, gap.runs) == (0.25, 0, 1, 4)
    lost = [
        row(1, None, status="failed"),
        row(2, NAN, step_loss=NAN),
        row(3, math.inf, step_loss=math.inf),
        row(4, 1.0),
    ]
    assert (paired_gap(lost).lost, paired_gap(lost).non_finite) == (3, 2)


def test_a_group_has_the_step_and_the_verdict_of_its_runs() -> None:
    verdict: Any = object()
    rows = [row(1, 0.5, gap_step=80, common_step=80), row(2, 0.5, gap_step=80, common_step=80, parity=verdict), row(3)]
    assert (paired_gap(rows).step, paired_gap(rows).parity) == (80, verdict)
    assert paired_gap([row(4)]).step is None


def test_whole_groups_are_ranked_by_their_means_and_those_with_a_collapse_after_them() -> None:
    means = {"worst": 0.75, "best": -0.5, "dead": -3.0, "even": 0.0, "nan": -2.0, "second": 0.25}
    rows = [row(1, mean, group=name) for name, mean in means.items()]
    rows += [row(2, collapse_step=5, group="dead"), row(2, NAN, step_loss=NAN, group="nan"), row(1, group="none")]
    rows += [row(1, None, group="bf16", is_baseline=True)]
    order = ["best", "even", "second", "worst", "dead", "nan"]
    assert [(members[0].group, gap.mean) for members, gap in ranking(rows)] == [(n, means[n]) for n in order]


def test_what_a_verdict_is_made_of_by_hand() -> None:
    """Losses of the baselines (loss minus gap): 2, 2 and 5; the run without a loss and the dead ones have none."""
    group = [
        row(1, 0.5, step_loss=2.5),
        row(1, 1.5, step_loss=3.5),
        row(2, -1.0, step_loss=4.0),
        row(3, 0.25),
        row(4, None, status="failed", step_loss=900.0),
        row(5, 0.5, collapse_step=9, step_loss=900.0),
        row(6, NAN, step_loss=NAN),
        row(7, math.inf, step_loss=math.inf),
        row(8, None, status="stopped"),
    ]
    group = [replace(one, loss_unit="") for one in group]
    baseline = row(1, group="bf16", is_baseline=True)
    whole = [row(seed, 0.25 + seed / 1000, group="whole") for seed in range(3)]
    *found, of_baseline, last = with_parity([*group, baseline, *whole], Terms())[: len(group) + 2]
    assert of_baseline.parity is None and last.parity is not None and last.parity.verdict == "worse"
    assert {one.parity for one in found} == {found[0].parity} and [replace(one, parity=None) for one in found] == group
    parity = found[0].parity
    assert parity is not None and parity.margin == pytest.approx(0.005 * 3) and parity.unit == ""
    assert parity.differences == (1.0, -1.0, 0.25)
    assert (parity.verdict, parity.runs, parity.collapsed, parity.non_finite, parity.ended_early) == (
        "collapsed",
        *(9, 1, 2, 2),
    )


def test_the_terms_of_a_table_hold_for_all_its_groups() -> None:
    rows = [row(seed, 0.1 + seed / 1000, group=group) for group in "ab" for seed in range(3)]
    for one in with_parity(rows, Terms(0.5, looks=3)):
        assert one.parity is not None
        assert (one.parity.margin, one.parity.looks, one.parity.tested) == (0.5, 3, 2)
        assert one.parity.verdict == "equivalent"
    (alone,) = with_parity([row(1, 0.1, loss_unit="")], Terms())
    assert alone.parity is not None and alone.parity.margin is None and alone.parity.verdict == "no claim"


def test_only_losses_of_the_latest_step_have_a_mean() -> None:
    late = [row(seed, validation_loss=2.0, validation_step=100) for seed in (1, 2)]
    others = [
        row(3, validation_loss=2.0, validation_step=90),
        row(4, validation_loss=None, validation_step=100),
        row(5, validation_loss=1.0, validation_step=200, status="failed"),
        row(6, validation_loss=1.0, validation_step=200, collapse_step=200),
    ]
    assert furthest([*others, *late]) == late
    unknown = [row(seed, validation_loss=2.0) for seed in (1, 2)]  # of a version that did not record the step
    assert furthest(unknown) == unknown and furthest(others[1:]) == []


def test_curves_without_a_common_step_have_none_and_inf_minus_inf_is_nan_without_a_warning() -> None:
    def curve(**values: float) -> Curve:
        return Curve(np.array([int(step[1:]) for step in values]), np.array(list(values.values())))

    one, other = curve(s10=math.inf, s20=3.0, s30=NAN), curve(s10=math.inf, s20=1.0, s40=1.0)
    assert last_common_step([one, other]) == 20 and last_common_step([one]) == 30
    assert last_common_step([one, curve(s1=1.0)]) is None and last_common_step([]) is None
    with warnings.catch_warnings(action="error"):
        assert math.isnan(gap_at(10, one, other)) and gap_at(20, one, other) == 2.0


def test_a_loss_is_that_of_the_step_asked_for_or_none() -> None:
    curve = Curve(np.array([10, 20, 30]), np.array([3.0, 2.0, NAN], dtype=np.float32))
    assert (loss_at(10, curve), loss_at(20, curve), loss_at(25, curve), loss_at(None, curve)) == (3.0, 2.0, None, None)
    assert math.isnan(loss_at(30, curve) or 0.0) and type(loss_at(20, curve)) is float


def test_the_rescue_matrix_counts_survivors_of_the_runs_that_ended() -> None:
    rows = [
        row(1, status="collapsed", collapse_step=50),
        row(2, status="collapsed", collapse_step=80),
        row(3, 0.5),
        row(4, status="running"),
        row(5, 0.25, intervention="clip"),
        row(6, variant="stored"),
    ]
    matrix = rescue_matrix(rows)
    assert matrix.keys() == {("E4M3", "", "none"), ("E4M3", "", "clip"), ("E4M3", "stored", "none")}
    cell = matrix["E4M3", "", "none"]
    assert (cell.survived, cell.ended, cell.others, cell.median_collapse_step) == (1, 3, {"running": 1}, 65.0)
    assert (cell.gap.n, cell.gap.mean, cell.runs) == (1, 0.5, ("r1", "r2", "r3", "r4"))
    assert matrix["E4M3", "", "clip"].median_collapse_step is None


def test_survival_is_the_product_of_shares_at_risk() -> None:
    rows = [
        row(1, status="collapsed", collapse_step=10),
        row(2, status="killed", step=20),
        row(3, status="collapsed", collapse_step=30),
        row(4, status="collapsed", collapse_step=30),
        row(5, step=100),
    ]
    result = survival(rows)
    assert result.steps.tolist() == [0, 10, 30]
    assert result.at_risk.tolist() == [5, 5, 3]  # the run killed at 20 says nothing about step 30
    assert result.alive.tolist() == pytest.approx([1, 4 / 5, 4 / 5 * 1 / 3])
    assert result.censored.tolist() == [20, 100]
    assert survival([]).alive.tolist() == [1.0]


def test_a_run_censored_at_the_step_of_a_collapse_was_at_risk_there() -> None:
    assert survival([row(1, status="collapsed", collapse_step=50), row(2, step=50)]).at_risk.tolist() == [2, 2]


def test_a_gap_of_unknown_unit_is_not_said_to_be_in_nats() -> None:
    in_nats = [row(seed, 0.1 * seed) for seed in (1, 2, 3)]
    unknown = [replace(one, loss_unit="") for one in in_nats]
    assert "nats" in paired_gap(in_nats).sentence and "nats" not in paired_gap(unknown).sentence
    assert (loss_unit(in_nats), loss_unit(unknown), loss_unit([*in_nats, *unknown]), loss_unit([])) == (
        "nats",
        "",
        "",
        "",
    )
