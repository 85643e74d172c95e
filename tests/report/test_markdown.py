"""Numbers, durations and tables as text."""

from __future__ import annotations

import math

import pytest

from altgrad.text.number_text import ABSENT, duration, number, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ABSENT),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (0.0, "0"),
        (-0.0, "0"),
        (3.0, "3"),
        (2.123456, "2.123"),
        (-0.00059861, "-0.0005986"),
        (1.5e-8, "1.5e-8"),
        (12345.678, "12346"),
        (999999.5, "1000000"),
        (1234567.0, "1234567"),
        (6.25e20, "6.25e20"),
        (99.996, "100"),
    ],
)
def test_a_number_has_four_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("value", [10.0**k * m for k in range(-12, 13) for m in (1.0, 1.2345678, -9.9994)])
def test_what_is_written_is_the_number_within_its_digits(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=5.1e-4)
    assert len(number(value)) <= 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ABSENT),
        (0.5, "0.5 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 0 s"),
        (125.0, "2 min 5 s"),
        (12000, "3 h 20 min"),
    ],
)
def test_a_duration_is_in_the_units_a_person_uses(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_cell_cannot_break_its_table() -> None:
    assert table(["a", "b"], [["x|y", "1\n2"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |"
