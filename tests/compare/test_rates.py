"""Best learning rates against figures worked out by hand and by scipy; the grid of `--lr auto`."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from altgrad.compare import (
    by_group,
    comparison,
    comparison_csv,
    group_difference,
    paired_runs,
    rate_lines,
    rates_markdown,
)
from altgrad.html import html_report
from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from tests.support.html_tree import parse
from tests.support.results.written_runs import HASHES, write_run
from tests.support.runs.sweep_plans import planned

RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
# mean loss at each rate; None: a run of the three seeds collapses there
CURVES: dict[str, list[float | None]] = {
    "BF16": [2.40, 2.08, 2.00, 2.05, 2.30],  # best at 4e-4, usable from 2e-4 to 8e-4
    "E4M3": [2.20, 2.04, 2.20, 2.50, None],  # best at 2e-4: +0.20 at BF16's best rate, +0.04 at its own
    "E5M2": [2.60, 2.50, 2.45, 2.35, 2.30],  # still falling: at the edge
    "E7M0": [2.50, None, None, None, None],  # lives at the lowest rate alone
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder.at(tmp_path_factory.mktemp("rates"))
    for fmt, losses in CURVES.items():
        for rate, loss in zip(RATES, losses, strict=True):
            for seed in range(3):
                dead = loss is None and seed == 1
                write_run(folder, f"{fmt.lower()}-{rate:g}-{seed}",
                          {100: 9.0 if dead else (loss or 3.0) + 0.01 * seed + noise(fmt, rate, seed)},
                          config={"format": fmt, "learning_rate": rate, "seed": seed},
                          status="collapsed" if dead else "completed")  # fmt: skip
    return folder


def noise(fmt: str, rate: float, seed: int) -> float:
    return float(np.random.default_rng([seed, round(rate * 1e6), len(fmt), ord(fmt[1])]).normal(0, 0.002))


def losses_of(fmt: str, rate: float) -> np.ndarray:
    at = CURVES[fmt][RATES.index(rate)]
    assert at is not None
    return np.array([at + 0.01 * seed + noise(fmt, rate, seed) for seed in range(3)])


def test_each_format_has_its_optimum_its_usable_rates_and_two_gaps(sweep: Folder) -> None:
    lines = {line.name: line for line in rate_lines(comparison(list_runs(sweep)[0]))}
    assert next(iter(lines)) == "BF16" and lines.keys() == CURVES.keys()
    assert {name: (line.best, line.where, line.usable) for name, line in lines.items()} == {
        "BF16": (4e-4, "interior", (2e-4, 8e-4)),
        "E4M3": (2e-4, "interior", (2e-4, 2e-4)),
        "E5M2": (1.6e-3, "at the upper edge", (8e-4, 1.6e-3)),
        "E7M0": (1e-4, "at the lower edge", (1e-4, 1e-4)),
    }
    assert lines["BF16"].shared == lines["BF16"].tuned == (None, None, None)
    for fmt, own, gap in (("E4M3", 4e-4, "shared"), ("E4M3", 2e-4, "tuned"), ("E5M2", 1.6e-3, "tuned")):
        paired = stats.ttest_rel(losses_of(fmt, own), losses_of("BF16", 4e-4))
        interval = paired.confidence_interval(0.95)
        middle = (losses_of(fmt, own) - losses_of("BF16", 4e-4)).mean()
        assert getattr(lines[fmt], gap) == pytest.approx((middle, interval.low, interval.high)), (fmt, gap)
    assert lines["E7M0"].shared == (None, None, None), "a run of it died at the shared rate"
    assert lines["E4M3"].width == 1 and lines["E5M2"].width >= 2


def test_each_setting_is_compared_with_the_bf16_that_has_it_at_every_rate(tmp_path: Path) -> None:
    """A width that is half a nat better in every format has a gap of 0.02 and not of half a nat."""
    settings: dict[str, list[dict[str, object]]] = {
        "widths": [{"n_embd": 64}, {"n_embd": 128}],
        "decays": [{"weight_decay": 0.1}, {"weight_decay": 0.2}],
    }
    for what, fields in settings.items():
        folder = Folder.at(tmp_path / what)
        for number, own in enumerate(fields):
            for fmt, behind in (("BF16", 0.0), ("E4M3", 0.02 + 0.01 * number)):
                for rate in RATES[:2]:
                    for seed in range(3):
                        write_run(folder, f"{fmt}-{number}-{rate:g}-{seed}",
                                  {100: 3.0 - 0.5 * number + behind + 0.1 * (rate != RATES[number])},
                                  config={"format": fmt, "learning_rate": rate, "seed": seed, **own})  # fmt: skip
        lines = {line.name: line for line in rate_lines(comparison(list_runs(folder)[0]))}
        assert len(lines) == 4
        for number, own in enumerate(fields):
            ((name, value),) = own.items()
            line = lines[f"E4M3, {name} {value}"]
            assert line.best == RATES[number]
            for gap in (line.shared, line.tuned):
                assert gap == pytest.approx((0.02 + 0.01 * number,) * 3), (what, name, value)


@pytest.mark.parametrize("lost", ["collapsed", "missing"])
def test_a_bf16_run_that_died_or_is_missing_takes_no_rate_from_another_format(tmp_path: Path, lost: str) -> None:
    """Both are best at the lowest rate, where one BF16 run is lost; E4M3 lives there."""
    folder = Folder.at(tmp_path)
    ends = {"BF16": (2.0, 2.1, 2.3), "E4M3": (2.05, 2.3, 2.6)}
    for fmt, number, seed in itertools.product(ends, range(3), range(3)):
        dead = fmt == "BF16" and number == 0 and seed == 1
        if not (dead and lost == "missing"):
            write_run(folder, f"{fmt}-{number}-{seed}", {50: 9.0} if dead else {50: 3.0, 100: ends[fmt][number]},
                      config={"format": fmt, "learning_rate": RATES[number], "seed": seed},
                      status="collapsed" if dead else "completed")  # fmt: skip
    lines = {line.name: line for line in rate_lines(comparison(list_runs(folder)[0]))}
    assert lines["E4M3"].losses == pytest.approx(dict(zip(RATES, ends["E4M3"], strict=False)))
    assert lines["E4M3"].best == RATES[0]
    assert lines["BF16"].best == (RATES[1] if lost == "collapsed" else RATES[0])
    assert lines["E4M3"].tuned[0] == pytest.approx(2.05 - (2.1 if lost == "collapsed" else 2.0))


def test_best_rates_that_saw_other_data_have_no_gap(tmp_path: Path) -> None:
    """Somebody edited the data before the second rate; BF16 is best at the first one, and E4M3 at the second."""
    folder = Folder.at(tmp_path)
    for fmt, losses in (("BF16", (2.0, 2.1)), ("E4M3", (2.3, 2.2))):
        for rate, loss in zip(RATES, losses, strict=False):
            write_run(folder, f"{fmt}-{rate:g}", {100: loss}, config={"format": fmt, "learning_rate": rate},
                      info={"batches_hash": f"{rate:g}", "initial_weights_hash": "a"})  # fmt: skip
    line = {line.name: line for line in rate_lines(comparison(list_runs(folder)[0]))}["E4M3"]
    assert line.tuned == (None, None, None)
    assert line.shared == pytest.approx((2.3 - 2.0, None, None))


def test_documents_have_the_table_only_where_rates_were_tried(sweep: Folder, tmp_path: Path) -> None:
    rows = comparison(list_runs(sweep)[0])
    text = rates_markdown(rows)
    assert text is not None and "at the upper edge" in text
    page = parse(html_report(sweep, 0.0)).text
    for line in rate_lines(rows):
        assert all(cell in page and cell in text.replace("\\", "") for cell in line.cells)
    assert len(comparison_csv(rows).splitlines()) == 1 + 3 * 5 * 4
    write_run(Folder.at(tmp_path), "one", {100: 2.0}, config={"format": "E4M3"})
    assert rates_markdown(comparison(list_runs(Folder.at(tmp_path))[0])) is None


def test_lr_auto_is_a_grid_around_each_configs_own_rate_with_baselines_at_each(tmp_path: Path) -> None:
    trials = planned("--formats", "E4M3", "--lr", "auto", "--set", "max_steps=10")
    rates = {fmt: sorted(t.config.learning_rate for t in trials.values() if t.config.format == fmt)
             for fmt in ("E4M3", "BF16")}  # fmt: skip
    own = next(iter(planned("--formats", "E4M3").values())).config.learning_rate
    assert rates["E4M3"] == rates["BF16"] == pytest.approx([own / 4, own / 2, own, 2 * own, 4 * own])
    assert all(trial.baseline in trials for trial in trials.values() if trial.config.format == "E4M3")
    with pytest.raises(SystemExit):
        planned("--formats", "E4M3", "--lr", "auto", "3e-4")


def test_groups_that_are_compared_at_other_steps_have_no_difference(tmp_path: Path) -> None:
    """Runs of 200 and of 500 steps have common steps of their own: losses of step 200 and 500 are not subtracted."""
    folder = Folder.at(tmp_path)
    for steps in (200, 500):
        for fmt, loss in (("BF16", 3.0 - steps / 1000), ("E4M3", 3.1 - steps / 1000)):
            for seed in range(3):
                config = {"format": fmt, "seed": seed, "max_steps": steps}
                write_run(folder, f"{fmt}-{steps}-{seed}", {100: 4.0, steps: loss}, config=config, info=HASHES)
    groups = {members[0].group_label: members for members in by_group(comparison(list_runs(folder)[0])).values()}
    one, other = (groups[f"E4M3, steps {steps}"] for steps in (200, 500))
    found = group_difference(one, other)
    assert found.mean is None and "measured at other steps (200 vs 500)" in found.obstacle
    assert found.sentence.endswith("not compared: measured at other steps (200 vs 500).")
    assert paired_runs(one, other) == [] and len(paired_runs(one, groups["BF16, steps 200"])) == 3


def test_a_rate_below_the_best_at_which_a_run_died_ends_the_usable_ones(tmp_path: Path) -> None:
    """Best at 4e-4; dead at 2e-4; good again at 1e-4: usable is 4e-4 alone."""
    folder = Folder.at(tmp_path)
    for fmt, losses in (("BF16", (2.0, 2.0, 2.0)), ("E4M3", (2.05, None, 2.0))):
        for rate, loss in zip(RATES, losses, strict=False):
            config = {"format": fmt, "learning_rate": rate}
            status = "collapsed" if loss is None else "completed"
            write_run(folder, f"{fmt}-{rate:g}", {100: loss or 9.0}, config=config, status=status)  # type: ignore[arg-type]
    line = {line.name: line for line in rate_lines(comparison(list_runs(folder)[0]))}["E4M3"]
    assert (line.best, line.usable) == (RATES[2], (RATES[2], RATES[2]))


def test_a_rate_at_which_a_run_has_reached_nan_since_the_common_step_is_not_best(tmp_path: Path) -> None:
    """At step 100 the second rate is better; its run was NaN at step 150, where the others have no measurement yet."""
    folder = Folder.at(tmp_path)
    for fmt, losses in (("BF16", (2.0, 2.1)), ("E4M3", (2.2, 2.0))):
        for number, (rate, loss) in enumerate(zip(RATES, losses, strict=False)):
            later = {150: math.nan} if fmt == "E4M3" and number else {}
            config = {"format": fmt, "learning_rate": rate, "max_steps": 200}
            write_run(folder, f"{fmt}-{rate:g}", {100: loss, **later}, config=config, status=None)
    line = {line.name: line for line in rate_lines(comparison(list_runs(folder)[0]))}["E4M3"]
    assert line.best == RATES[0] and list(line.losses) == [RATES[0]]
