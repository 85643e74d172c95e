"""The parity verdict against scipy's tests, Holm's example and simulation: false claims, power, number of seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from altgrad.compare.parity.power import POWER, power, seeds_needed
from altgrad.compare.parity.student_t import t_quantile, t_tail
from altgrad.compare.parity.verdict import LEVEL, Parity, judged

MARGIN = 0.01
CLAIMS = ("equivalent", "worse", "better")


def group(differences: Sequence[float], **fields: object) -> Parity:
    plain = Parity("no claim", MARGIN, differences=tuple(map(float, differences)), runs=len(differences))
    return replace(plain, **fields)


def p_of_scipy(values: np.ndarray) -> dict[str, float]:
    def one_sided(edge: float, side: str) -> float:
        return float(stats.ttest_1samp(values, edge, alternative=side).pvalue)

    inside = max(one_sided(MARGIN, "less"), one_sided(-MARGIN, "greater"))
    return {"equivalent": inside, "worse": one_sided(MARGIN, "greater"), "better": one_sided(-MARGIN, "less")}


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30, 199])
def test_the_t_distribution_is_that_of_scipy(freedom: int) -> None:
    for level in (0.5, 0.05, 0.001):
        assert t_quantile(freedom, 1 - level) == pytest.approx(stats.t.ppf(1 - level / 2, freedom))
    for t in (-40.0, -1.3, 0.0, 0.7, 5.0, math.inf, -math.inf):
        assert t_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), abs=1e-12)


def test_a_verdict_is_that_of_scipys_tests_and_agrees_with_the_95_percent_interval() -> None:
    rng, seen = np.random.default_rng(1), set()
    for _ in range(400):
        values = rng.normal(rng.uniform(-0.03, 0.03), rng.uniform(0.001, 0.01), int(rng.integers(3, 9)))
        (found,) = judged([group(values)])
        claims = p_of_scipy(values)
        best = min(claims, key=claims.__getitem__)
        assert found.p == pytest.approx(min(2 * claims[best], 1), abs=1e-9)
        assert found.verdict == (best if 2 * claims[best] <= LEVEL else "undecided")
        low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
        inside, above, below = low > -MARGIN and high < MARGIN, low > MARGIN, high < -MARGIN
        by_interval = "equivalent" if inside else "worse" if above else "better" if below else "undecided"
        assert found.verdict == by_interval
        seen.add(found.verdict)
    assert seen == {*CLAIMS, "undecided"}


def test_holms_method_corrects_the_table_as_in_its_textbook_example() -> None:
    # p = 0.01, 0.04, 0.03, 0.005 have the corrected values 0.03, 0.06, 0.06, 0.02
    def with_p(p: float) -> Parity:  # three differences whose best claim, `worse`, has the two-sided p
        t = stats.t.isf(p / 2, 2)
        spread = np.array([-1.0, 0.0, 1.0])  # of mean 0 and standard deviation 1
        return group(MARGIN + 0.001 * (t / math.sqrt(3) + spread))

    table = judged([with_p(p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [one.p for one in table] == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-6)
    assert [one.verdict for one in table] == ["worse", "undecided", "undecided", "worse"]
    assert {one.tested for one in table} == {4} and {one.level for one in table} == {LEVEL / 2}
    assert [judged([one])[0].verdict for one in table] == ["worse"] * 4, "each of them alone would be decided"


def test_a_dead_run_or_too_few_seeds_never_make_a_group_as_good() -> None:
    good = [0.0001, -0.0001, 0.0, 0.0002]
    assert judged([group(good)])[0].verdict == "equivalent"
    ahead = [one - 1 for one in good]
    assert judged([group(ahead)])[0].verdict == "better"
    for values in (good, ahead):
        for death in ({"collapsed": 1}, {"non_finite": 1}, {"ended_early": 1}):
            (found,) = judged([group(values, runs=5, **death)])
            assert found.verdict not in CLAIMS, death
            assert "of 5" in found.sentence
        assert judged([group(values[:2])])[0].verdict == "no claim"
    assert judged([group([one + 1 for one in good], runs=5, ended_early=1)])[0].verdict == "worse"
    assert judged([group(good[:1])])[0].sentence.startswith("no claim: one seed")
    assert judged([group([0.0, 0.0, 0.0])])[0].verdict == "equivalent", "runs that are equal bit for bit"
    assert judged([group([MARGIN] * 3)])[0].verdict == "undecided", "exactly on the edge"


def test_deaths_of_the_other_side_make_nobody_worse_and_nothing_equivalent() -> None:
    good = [0.0001, -0.0001, 0.0, 0.0002]
    ahead, behind = [one - 1 for one in good], [one + 1 for one in good]
    other = {"against": "E4M3", "against_runs": 5}
    for values in (good, ahead, behind):
        (found,) = judged([group(values, against_dead=1, **other)])
        assert found.sentence == "no claim: of E4M3, 1 of 5 collapsed or reached NaN"
        both = judged([group(values, collapsed=1, against_dead=1, runs=5, **other)])[0]
        assert both.verdict == "no claim", "both sides have died"
    words = {"equivalent": good, "better": ahead, "worse": behind}
    early = {word: judged([group(values, against_early=1, **other)])[0] for word, values in words.items()}
    assert {word: one.verdict for word, one in early.items()} == dict.fromkeys(words, "undecided") | {
        "better": "better"
    }
    assert "1 of 5 of E4M3 ended early" in early["worse"].sentence
    assert judged([group(behind, ended_early=1, against_early=1, runs=5, **other)])[0].verdict == "undecided"


def rates(n: int, true_mean: float, spread: float, tables: int, groups: int = 1) -> tuple[dict[str, float], float]:
    """The share of groups with each claim, and the share of tables with any claim, in simulated sweeps."""
    rng = np.random.default_rng(n)
    counts, with_claim = dict.fromkeys(CLAIMS, 0), 0
    for _ in range(tables):
        found = judged([group(values) for values in rng.normal(true_mean, spread, (groups, n))])
        claims = [one.verdict for one in found if one.verdict in CLAIMS]
        with_claim += bool(claims)
        for word in claims:
            counts[word] += 1
    return {word: count / (tables * groups) for word, count in counts.items()}, with_claim / tables


@pytest.mark.parametrize(("n", "spread"), [(3, 0.004), (5, 0.02), (8, 0.004)])
def test_false_claims_stay_below_five_percent_where_they_are_most_likely(n: int, spread: float) -> None:
    # at the edge a group is neither inside nor beyond: every claim is false.  Each has half of 5 %, and 3 standard
    # deviations of the simulation are allowed on top.
    share, _ = rates(n, MARGIN, spread, 1500)
    allowed = LEVEL / 2 + 3 * math.sqrt(LEVEL / 2 / 1500)
    assert share["equivalent"] <= allowed and share["worse"] <= allowed and share["better"] <= allowed
    assert share["worse"] > LEVEL / 2 - 3 * math.sqrt(LEVEL / 2 / 1500), "nor is the test idle"


def test_in_a_table_of_twelve_groups_a_wrong_verdict_anywhere_is_as_rare() -> None:
    _, anywhere = rates(5, MARGIN, 0.004, 600, groups=12)
    assert anywhere <= LEVEL + 3 * math.sqrt(LEVEL / 600)


@pytest.mark.parametrize(
    ("n", "true_mean", "spread", "word"),
    [
        (4, 0.0, 0.004, "equivalent"), (6, 0.004, 0.005, "equivalent"), (5, 0.02, 0.006, "worse"),
        (12, -0.02, 0.01, "better"),
    ],
)  # fmt: skip
def test_power_is_as_predicted(n: int, true_mean: float, spread: float, word: str) -> None:
    share, _ = rates(n, true_mean, spread, 1500)
    predicted = power(n, true_mean, spread, MARGIN, LEVEL)
    assert share[word] == pytest.approx(predicted, abs=3 * math.sqrt(predicted * (1 - predicted) / 1500))


@pytest.mark.parametrize("n", [3, 6, 20])
def test_the_power_of_worse_is_that_of_scipys_noncentral_t(n: int) -> None:
    shift = (0.02 - MARGIN) * math.sqrt(n) / 0.008
    assert power(n, 0.02, 0.008, MARGIN, LEVEL) == pytest.approx(
        stats.nct.sf(t_quantile(n - 1), n - 1, shift), abs=1e-6
    )


def test_the_seeds_that_would_decide_are_the_fewest_with_the_power() -> None:
    def search(enough: Callable[[int], bool]) -> int:
        return next(n for n in range(4, 200) if enough(n))

    for mean, spread in ((0.0, 0.01), (0.02, 0.01), (0.005, 0.004)):
        needed = seeds_needed(mean, spread, MARGIN, LEVEL, 4)
        assert needed == search(lambda n, m=mean, s=spread: power(n, m, s, MARGIN, LEVEL) >= POWER)
    assert seeds_needed(MARGIN, 0.01, MARGIN, LEVEL, 4) is None
    (found,) = judged([group([0.0, 0.01, -0.01, 0.002])])
    assert found.verdict == "undecided" and found.seeds is not None
    assert f"about {found.seeds} seeds would decide it (80 % power)" in found.sentence


@pytest.mark.parametrize("looks", [1, 2, 5])
def test_the_level_of_the_next_test_is_shared_among_the_undecided_and_the_looks(looks: int) -> None:
    clear, open_ = (0.5, 0.51, 0.49), (0.0, 0.02, -0.02)
    table = [Parity("no claim", 0.01, differences=one, runs=3) for one in (clear, open_, open_)]
    found = judged(table, looks)
    assert [one.verdict for one in found] == ["worse", "undecided", "undecided"]
    assert [one.level for one in found] == pytest.approx([LEVEL / (2 * looks)] * 3)
