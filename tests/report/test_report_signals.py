"""What moved first, and the loss curve as text, on curves whose story is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from altgrad.report.signals import Departure, what_moved
from altgrad.report.text_plot import plot
from altgrad.results.reading.curves import Curve

NAN = math.nan


def curve(values: Callable[[int], float], steps: Iterable[int]) -> Curve:
    steps = list(steps)
    return Curve(np.array(steps, np.int64), np.array([values(step) for step in steps], np.float64))


def test_signals_are_ordered_by_the_step_at_which_they_left_their_baseline() -> None:
    noise = np.random.default_rng(0).standard_normal(301)
    signals = what_moved(
        {
            "loss": curve(lambda s: 5 - s / 100 + 0.02 * noise[s] if s < 250 else NAN, range(1, 300)),
            "overflow_rate": curve(lambda s: 0.0 if s < 120 else 0.05, range(1, 300)),
            "gradient_norm": curve(lambda s: 1 + 0.1 * noise[s] + (20 if s >= 180 else 0), range(1, 300)),
            "gradient_cosine_similarity": curve(lambda s: 0.99 if s < 150 else 0.2, range(25, 300, 25)),
            "stable_rank": curve(lambda s: 20.0, range(25, 300, 25)),
            "learning_rate": curve(lambda s: s / 300, range(1, 300)),
            "validation_loss": curve(lambda s: 5.0, [100, 200]),
        }.items()
    )
    assert [(d.metric, d.step, d.how) for d in signals.moved] == [
        ("overflow_rate", 120, "rose"),
        ("gradient_cosine_similarity", 150, "fell"),
        ("gradient_norm", 180, "rose"),
        ("loss", 250, "became NaN or inf"),
    ]
    assert signals.still == ["stable_rank"]
    assert signals.sparse == ["validation_loss"]


def test_a_falling_loss_and_an_improving_signal_leave_nothing() -> None:
    signals = what_moved(
        [
            ("loss", curve(lambda s: 5.5 * math.exp(-s / 100) + 1, range(1, 300))),
            ("realised_displacement", curve(lambda s: 0.5 + s / 600, range(25, 300, 25))),
        ]
    )
    assert signals.moved == []


def test_a_loss_is_held_against_its_best_and_not_against_its_start() -> None:
    (departure,) = what_moved([("loss", curve(lambda s: 5 - s / 60 if s < 180 else s / 60 - 1, range(1, 300)))]).moved
    assert departure.step == 199  # best 2.017 at step 179; six times the floor of 0.05 nats above it
    assert departure.baseline == pytest.approx(2, abs=0.02)
    assert departure.value == pytest.approx(2.317, abs=0.01)


def test_a_signal_that_was_bad_from_its_first_measurement_comes_first() -> None:
    signals = what_moved(
        [
            ("overflow_rate", curve(lambda s: 0.0 if s < 60 else 0.2, range(1, 100))),
            ("realised_displacement", curve(lambda s: 0.01, [25, 50, 75])),
        ]
    )
    assert [(d.metric, d.step) for d in signals.moved] == [("realised_displacement", 25), ("overflow_rate", 60)]
    assert signals.moved[0].how == "out of bounds from the start"


def test_a_single_outlier_among_many_measurements_is_no_departure() -> None:
    noise = np.random.default_rng(0).standard_normal(301)
    values = curve(lambda s: 1 + 0.1 * noise[s] + (1.5 if s == 150 else 0), range(1, 300))
    assert what_moved([("gradient_norm", values)]).moved == []


def test_the_measurements_that_make_the_baseline_do_not_leave_it() -> None:
    values = curve(lambda s: 30.0 if s == 3 else 1.0, range(1, 100))
    assert what_moved([("gradient_norm", values)]).moved == []


def test_what_did_not_change_is_called_no_change_and_two_values_are_told_apart() -> None:
    still = what_moved([("overflow_rate", curve(lambda s: 1.0, range(1, 100)))]).moved
    assert [departure.change for departure in still] == ["1: out of bounds from the start"]
    rng = np.random.default_rng(5)
    for _ in range(300):
        low = float(rng.uniform(0.1, 1.0))
        values = curve(lambda s, low=low: low if s < 50 else low * (1 + 10.0 ** -rng.integers(1, 9)), range(1, 100))
        for metric in ("gradient_norm", "realised_displacement", "validation_loss", "stall_rate"):
            for departure in what_moved([(metric, values)]).moved:
                before, arrow, after = departure.change.partition(": ")[2].partition(" → ")
                assert bool(arrow) == (departure.how != "out of bounds from the start")
                assert not arrow or before != after, departure.change
    tiny = Departure("loss", 9, 1.000_000_1, 2.0, "rose", 1.0, 1e-9, 1, 8, 8)
    assert tiny.change == "rose: 1 → 1.0000001"


# --- the loss curve


def test_the_plot_has_axes_and_marks_nan_spans_the_verdict_and_values_above_the_scale() -> None:
    values = [4.0 - 0.01 * step for step in range(200)]
    values[150] = 1e6
    values[120:125] = [NAN] * 5
    text = plot(Curve(np.arange(200), np.array(values)), {199: "verdict stalled"}, label="Training loss (nats)")
    lines = text.splitlines()
    assert lines[0] == "Training loss (nats)"
    assert "above the scale, up to 1000000" in lines[1] and lines[1].count("↑") == 1
    assert any(line.lstrip().startswith("2.01 ┤") for line in lines)
    assert any(re.fullmatch(r"\s+0\s+step 99\s+199", line) for line in lines)
    assert any("×" in line and "steps 120–124" in line for line in lines)
    assert any("▲" in line and "verdict stalled, step 199" in line for line in lines)
    assert max(len(line.split("  ")[0]) for line in lines) < 90


def test_every_step_of_a_short_curve_is_drawn_where_it_belongs() -> None:
    text = plot(Curve(np.array([1, 2]), np.array([1.0, 0.0])), {}, label="x", width=4, height=2)
    rows = [line.partition("┤")[2] for line in text.splitlines() if "┤" in line]
    assert rows == ["⠁  ⢸", "   ⢸"]  # the first value at the top left, then down to the last at the bottom right


@pytest.mark.parametrize("values", [[NAN, NAN], [2.0], [2.0, 2.0, 2.0], [math.inf, 1.0]])
def test_curves_without_a_scale_are_drawn_all_the_same(values: list[float]) -> None:
    text = plot(Curve(np.arange(len(values)), np.array(values)), {5: "verdict"}, label="loss")
    assert "verdict, step 5" in text
    assert ("NaN or inf" in text) == (not all(map(math.isfinite, values)))


def test_a_loss_that_was_never_measured_is_said_to_be_absent() -> None:
    assert plot(Curve(np.array([], np.int64), np.array([])), {}, label="loss") == "loss: not measured"
