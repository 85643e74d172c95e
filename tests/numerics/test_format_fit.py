"""Rounding without torch, held bit by bit against the kernel that trains; SQNR and fit against the textbook."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from altgrad.format_fit import (
    Weighted,
    fit,
    from_distribution,
    from_histogram,
    grid,
    indices,
    power_of_two_scale,
    rounded,
)
from altgrad.formats import FORMATS, SPLITS, find_format
from altgrad.quantization.kernel.round import round_to_format
from tests.references import oracles

ROUNDED = [*FORMATS.values(), *map(find_format, ("E1M0", "E2M0", "E3M3", "E4M3b11", "E5M9"))]
TO_INFINITY = [replace(fmt, overflow="inf") for fmt in FORMATS.values() if fmt.has_inf]


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bit patterns, all NaN alike."""
    return np.where(np.isnan(x), np.float32(np.nan), x).astype(np.float32).view(np.uint32)


def inputs(fmt: Any) -> NDArray[np.float32]:
    """Values, midpoints and their neighbours (of 16 bits and less all), and random patterns of float32."""
    patterns = np.random.default_rng(1).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, np.inf, np.nan, fmt.max, -fmt.lowest, 1e-45, 3e38], np.float32)
    found = [patterns, special]
    if fmt.bits <= 16:
        values = np.array([*fmt.magnitudes(), -fmt.lowest, -fmt.lowest + fmt.ulp(fmt.lowest)]).astype(np.float32)
        middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
        for points in (values, middles):
            found += [points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(np.inf))]
    x = np.concatenate(found)
    normal = (x == 0) | ~np.isfinite(x) | (np.abs(x) >= np.finfo(np.float32).tiny)
    return np.concatenate([x, -x])[np.tile(normal, 2)]


@pytest.mark.parametrize("fmt", [*ROUNDED, *TO_INFINITY], ids=lambda fmt: f"{fmt}-{fmt.overflow}")
@np.errstate(over="ignore")
def test_rounding_without_torch_is_that_of_training_bit_for_bit(fmt: Any) -> None:
    x = inputs(fmt)
    expected = round_to_format(torch.from_numpy(x), fmt).numpy()
    np.testing.assert_array_equal(bits(rounded(x, fmt).astype(np.float32)), bits(expected))


@pytest.mark.parametrize("fmt", [fmt for fmt in ROUNDED if fmt.bits <= 16], ids=str)
def test_an_index_is_the_place_of_the_rounded_magnitude(fmt: Any) -> None:
    x = inputs(fmt)
    x = np.abs(x[np.isfinite(x)])
    saturating = replace(fmt, overflow="saturate")
    np.testing.assert_array_equal(grid(fmt)[indices(x, fmt)], rounded(x, saturating))


def test_integers_reach_one_step_further_below_zero() -> None:
    assert rounded([-127.5, -128.0, -200.0, 127.5, 200.0], FORMATS["INT8"]).tolist() == [-128, -128, -128, 127, 127]
    assert math.copysign(1, rounded([-0.25], FORMATS["INT8"])[0]) == 1.0
    assert math.copysign(1, rounded([-1e-9], FORMATS["E4M3"])[0]) == -1.0
    two = Weighted(np.array([128.0]), np.array([1.0]))  # half at -128, which is a value, half at 128
    found = fit(two, FORMATS["INT8"], scaled=False)
    assert found.sqnr_db == pytest.approx(10 * math.log10(128**2 / 0.5)) and found.overflow == 0.5


def test_scale_puts_the_largest_value_into_the_top_half() -> None:
    for fmt in SPLITS:
        for amax in (1e-18, 0.3, 1.0, fmt.max, 1.0001 * fmt.max, 7e9):
            scale = power_of_two_scale(amax, fmt)
            assert fmt.max / 2 < amax / scale <= fmt.max
        assert power_of_two_scale(0.0, fmt) == 1.0
    unscaled = [fmt for fmt in FORMATS.values() if not fmt.scaled]
    assert unscaled and {power_of_two_scale(1e6, fmt) for fmt in unscaled} == {1.0}


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.bits <= 16], ids=str)
def test_scale_at_the_ends_of_float32_is_that_of_training(fmt: Any) -> None:
    for exponent in (*range(-149, -100), *range(100, 128)):
        for fraction in (1.0, 1.5, 1.9999999):
            amax = float(np.float32(fraction * 2.0**exponent))
            assert power_of_two_scale(amax, fmt) == oracles.power_of_two_scale(amax, fmt), amax


def test_uniform_values_have_the_textbook_sqnr_in_fixed_point() -> None:
    """Uniform on (0, 1): signal 1/3, noise step^2 / 12; with 128 steps 20 log10(256) dB."""
    uniform = Weighted((np.arange(200_000) + 0.5) / 200_000, np.full(200_000, 1 / 200_000))
    found = fit(uniform, FORMATS["E0M7"], scaled=False)
    assert found.sqnr_db == pytest.approx(20 * np.log10(256), abs=0.3)
    assert found.entropy == pytest.approx(8.0, abs=0.02)
    assert found.used == 1.0


def test_powers_of_two_lose_nothing_in_e7m0() -> None:
    found = fit(Weighted(np.array([0.25, 1.0, 8.0]), np.array([0.25, 0.5, 0.25])), FORMATS["E7M0"])
    assert found.sqnr_db == np.inf
    assert found.entropy == pytest.approx(1.5 + 1.0)


def test_histogram_keeps_counts_and_zeros() -> None:
    data = from_histogram(-2, [3, 0, 1], zeros=4)
    assert data.weights.sum() == pytest.approx(0.5) and data.zeros == 0.5
    assert data.magnitudes[data.weights > 0].min() > 0.25 and data.magnitudes.max() < 2
    assert fit(data, FORMATS["E4M3"]).underflow == 0.0


@pytest.mark.parametrize("name", ["Gaussian", "Laplace", "Student-t, 3 degrees"])
def test_distribution_has_unit_variance(name: str) -> None:
    data = from_distribution(name)
    heavy = name.startswith("Student")  # the tail beyond the last quantile holds much of its variance
    assert (data.weights * data.magnitudes**2).sum() == pytest.approx(1.0, abs=0.06 if heavy else 0.01)


def test_a_fit_by_hand() -> None:
    """In E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6) a tie goes to the even code: 0.25 to 0, 0.75 to 1, 5 to 4; 100 to 6."""
    values = np.array([0.2, 0.25, 0.75, 1.0, 5.0, 100.0, 1e9])
    data = Weighted(values, np.array([0.1] * 6 + [0.0]), zeros=0.4)
    found = fit(data, FORMATS["E2M1"], scaled=False)
    noise, power = 0.04 + 2 * 0.0625 + 1 + 94**2, 0.04 + 0.0625 + 0.5625 + 1 + 25 + 1e4
    assert found.sqnr_db == pytest.approx(10 * math.log10(power / noise))
    assert (found.underflow, found.overflow) == pytest.approx((0.2 / 0.6, 0.1 / 0.6))
    shares = np.array([0.6, 0.2, 0.1, 0.1])  # of 0, 1, 4 and 6
    assert found.entropy == pytest.approx(-(shares * np.log2(shares)).sum() + 0.4)
    assert (found.bits, found.used) == (4, 4 / 8)
    by_largest, by_given = fit(data, FORMATS["E2M1"]), fit(data, FORMATS["E2M1"], amax=7.0)  # scales 32 and 2
    assert (by_largest.overflow, by_largest.underflow) == pytest.approx((0, 5 / 6))  # 5 / 32 lies below 0.25
    assert (by_given.overflow, by_given.underflow) == pytest.approx((1 / 6, 2 / 6))
    assert fit(Weighted(np.array([1.0]), np.array([0.0]), 1.0), FORMATS["E2M1"]).underflow == 0
    wide = fit(data, FORMATS["FP32"])
    assert (wide.sqnr_db, wide.underflow, wide.overflow, wide.bits) == (math.inf, 0, 0, 32)
    assert math.isnan(wide.entropy) and math.isnan(wide.used)
    assert math.isfinite(fit(Weighted(np.array([1.0, 1.001]), np.array([0.5, 0.5])), FORMATS["BF16"]).sqnr_db)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Gaussian", stats.norm()),
        ("Laplace", stats.laplace(scale=1 / math.sqrt(2))),
        ("Student-t, 3 degrees", stats.t(3, scale=1 / math.sqrt(3))),
    ],
)
def test_a_distribution_has_the_quantiles_of_scipys(name: str, known: Any) -> None:
    data = from_distribution(name)
    shares = np.cumsum(data.weights) - data.weights / 2
    np.testing.assert_allclose(data.magnitudes, known.ppf((1 + shares) / 2), rtol=1e-6)


def test_a_histogram_spreads_each_count_evenly_over_its_binade() -> None:
    data = from_histogram(-3, [2, 0, 6], zeros=2)  # in [1/8, 1/4) and [1/2, 1)
    low, high = data.magnitudes < 0.25, data.magnitudes >= 0.5
    assert (data.weights[low].sum(), data.weights[high].sum(), data.zeros) == pytest.approx((0.2, 0.6, 0.2))
    means = [np.average(data.magnitudes[part], weights=data.weights[part]) for part in (low, high)]
    assert means == pytest.approx([3 / 16, 3 / 4]) and (low | high | (data.weights == 0)).all()


@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E3M2", "E2M5", "E0M7", "FP16"])
@pytest.mark.parametrize("known", [stats.norm(), stats.laplace(), stats.t(3), stats.uniform(-0.8, 1.6)])
def test_a_histogram_of_a_distribution_fits_a_format_as_the_distribution_does(known: Any, name: str) -> None:
    """The counts of a million values by scipy, and the SQNR of its own quantiles, up to the largest of them."""
    fmt, n = find_format(name), 10**6
    exact = np.abs(known.ppf((1 + (np.arange(n) + 0.5) / n) / 2))
    first = -40
    edges = np.ldexp(1.0, np.arange(first, np.frexp(exact.max())[1] + 1))
    counts = np.histogram(exact, edges)[0]
    found = fit(from_histogram(first, counts.tolist(), 0, exact.max()), fmt, float(exact.max()))
    expected = fit(Weighted(exact, np.full(n, 1 / n)), fmt)
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, abs=0.15)
    assert found.underflow == pytest.approx(expected.underflow, abs=0.002)
    occurring = from_histogram(first, counts.tolist(), 0, exact.max())
    assert occurring.magnitudes[occurring.weights > 0].max() == exact.max()


@pytest.mark.parametrize("mantissa_bits", range(3, 13))
def test_no_precision_of_a_format_meets_the_points_of_a_histogram_in_step(mantissa_bits: int) -> None:
    """Values spread evenly over [1, 2) have the mean squared error spacing^2 / 12."""
    fmt = find_format(f"E3M{mantissa_bits}")
    found = fit(from_histogram(0, [1], zeros=0), fmt, scaled=False)
    spacing, power = 2.0**-mantissa_bits, 7 / 3
    assert found.sqnr_db == pytest.approx(10 * math.log10(power / (spacing**2 / 12)), abs=0.05)
