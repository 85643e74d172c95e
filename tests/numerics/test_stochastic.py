"""Stochastic rounding: only ever a neighbour, unbiased, independent from place to place and reproducible.

All draws are seeded; limits are 5 standard errors, so a correct generator fails about once in a million tests.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from altgrad.formats import FORMATS, SPLITS, NumberFormat
from altgrad.quantization.kernel.random import draw_key, fill_key, uniform
from altgrad.quantization.kernel.round import FormatTensors, round_magnitude, round_to_format, saturate
from tests.references.oracles import round_by_search, same_bits
from tests.references.rounding_inputs import ALL, everything

EIGHT_BITS = SPLITS


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(x: torch.Tensor, fmt: NumberFormat, seed: int) -> torch.Tensor:
    return round_to_format(x, fmt, "stochastic", generator(seed))


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_the_result_is_always_one_of_the_two_neighbours(fmt):
    x = everything(fmt)
    result = draws(torch.from_numpy(x), fmt, 0).numpy()
    below, above = round_by_search(x, fmt, "toward_zero"), round_by_search(x, fmt, "away")
    number = ~np.isnan(x)
    assert ((result == below) | (result == above))[number].all()
    assert np.isnan(result[~number]).all()
    has_sign = number & ((result != 0) | fmt.has_negative_zero)
    assert np.array_equal(np.signbit(result[has_sign]), np.signbit(x[has_sign]))
    between = number & (below != above)
    assert (result == below)[between].any() and (result == above)[between].any()


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_values_on_the_grid_are_left_alone(fmt):
    values = torch.tensor(fmt.magnitudes())
    values = torch.cat([values, -values if fmt.has_negative_zero else -values[1:]])
    for seed in range(10):
        assert same_bits(draws(values, fmt, seed).numpy(), values.numpy())


@pytest.mark.parametrize("noise", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_extreme_noise_rounds_everything_up_or_down_and_leaves_the_grid_alone(fmt, noise):
    values = torch.tensor(fmt.magnitudes())
    x = torch.cat([values, (values[:-1] + values[1:]) / 2])
    tensors = FormatTensors.of(fmt)
    result = saturate(round_magnitude(x, tensors, "stochastic", torch.tensor(noise)), x, tensors)
    expected = round_by_search(x.numpy(), fmt, "away" if noise == 0 else "toward_zero")
    assert same_bits(result.numpy(), expected)


@pytest.mark.parametrize("fraction", [1 / 1024, 1 / 16, 1 / 3, 0.5, 0.9, 1023 / 1024])
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_the_mean_is_unbiased_in_every_binade_and_among_the_subnormals(fmt, fraction):
    number, chosen = 40_000, [0, 1, fmt.max_index // 2, fmt.max_index - 1]
    for index in chosen:
        low, high = fmt.value(index), fmt.value(index + 1)
        x = torch.full((number,), low + fraction * (high - low), dtype=torch.float32)
        probability = (float(x[0]) - low) / (high - low)
        up = draws(x, fmt, index) == high
        error = (float(up.double().mean()) - probability) / math.sqrt(probability * (1 - probability) / number)
        assert abs(error) < 5


def test_the_mean_over_random_values_is_unbiased():
    x = torch.randn(1_000_000, generator=generator(0))
    for fmt in EIGHT_BITS[2:]:
        error = (draws(x, fmt, 1) - x).double()
        assert abs(float(error.mean() / error.std())) * 1000 < 5


@pytest.mark.parametrize(("rounding", "kept"), [("stochastic", True), ("nearest", False)])
def test_e7m0_keeps_the_mean_of_repeated_small_updates_where_nearest_rounding_shrinks_it(rounding, kept):
    # With nearest rounding shrinking needs half of the update that growing needs.
    weights = torch.ones(100_000)
    source = generator(0)
    for _ in range(20):
        update = 0.15 * weights * torch.randn(weights.shape, generator=source)
        weights = round_to_format(weights + update, FORMATS["E7M0"], rounding, source)
    standard_error = float(weights.std()) / math.sqrt(len(weights))
    assert standard_error < 0.01
    assert (abs(float(weights.mean()) - 1) < 5 * standard_error) == kept
    assert kept or weights.mean() < 0.7


def test_every_position_is_unbiased_on_its_own():
    repeats, positions, probability = 400, 4096, 0.3
    source = generator(7)
    x = torch.full((positions,), 1 + probability / 8)  # E4M3: neighbours 1 and 1.125
    ups = sum((round_to_format(x, FORMATS["E4M3"], "stochastic", source) > 1).double() for _ in range(repeats))
    scores = (ups - repeats * probability) / math.sqrt(repeats * probability * (1 - probability))
    chi2_per_position = float((scores**2).mean())
    assert abs(chi2_per_position - 1) < 5 * math.sqrt(2 / positions)
    assert scores.abs().max() < 5.5


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """In standard errors."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]) * math.sqrt(a.numel())


@pytest.mark.parametrize("lag", [1, 2, 3, 32, 256, 1024, 65536])
@pytest.mark.parametrize("shape", [(1_000_000,), (1000, 1000), (31250, 32)])
def test_noise_at_a_distance_is_uncorrelated(lag, shape):
    noise = uniform(draw_key(generator(0), "cpu"), torch.empty(shape)).flatten()
    assert abs(correlation(noise[:-lag], noise[lag:])) < 5


def test_noise_of_successive_draws_and_of_different_salts_is_uncorrelated():
    source = generator(0)
    like = torch.empty(200_000)
    keys = [draw_key(source, "cpu") for _ in range(4)]
    streams = [uniform(key, like, salt) for key in keys for salt in (0, 1, 2, 300)]
    for position, first in enumerate(streams):
        for second in streams[position + 1 :]:
            assert abs(correlation(first, second)) < 5


def test_neighbouring_keys_and_salts_give_unrelated_noise_not_a_shifted_or_permuted_copy():
    number = 200_000
    chosen = [((0, 0), 0), ((0, 0), 1), ((0, 1), 0), ((2, 0), 0), ((4, 7), 2)]
    streams = [uniform(torch.tensor(key, dtype=torch.int32), torch.empty(number), salt) for key, salt in chosen]
    by_chance = number**2 / 2**24
    for position, first in enumerate(streams):
        for second in streams[position + 1 :]:
            assert abs(correlation(first, second)) < 5
            assert int(torch.isin(first, second).sum()) < 1.2 * by_chance


@pytest.mark.parametrize("bit", [0, 1, 3])
def test_rows_and_columns_of_noise_are_as_independent_as_chance_has_it(bit):
    """The correlations of all pairs, in standard errors, against a normal distribution: spread, tails and means."""
    size = 2048
    noise = uniform(draw_key(generator(bit), "cpu"), torch.empty(size, size))
    signs = 1.0 - 2.0 * ((noise * 2 ** (bit + 1)).to(torch.int32) & 1)  # of the bit-th highest bit
    off_diagonal = ~torch.eye(size, dtype=torch.bool)
    for vectors in (signs, signs.T):
        scores = (vectors @ vectors.T / math.sqrt(size))[off_diagonal]
        assert abs(float(scores.std()) - 1) < 0.003
        assert float((scores.abs() > 5.5).double().mean()) < 1e-5  # 4e-8 by chance; some pairs of words do meet
        assert abs(float((vectors.mean(dim=1) * math.sqrt(size)).std()) - 1) < 5 / math.sqrt(2 * size)


@pytest.mark.parametrize("shape", [(1_048_576,), (1024, 1024), (32768, 32)])
@pytest.mark.parametrize("key", [(0, 0), (1, 0), (0, 1), (2**31 - 2, 2**31 - 2)])
def test_noise_is_uniform_bit_by_bit_and_in_bins_also_for_weak_keys(key, shape):
    number = 1_048_576
    noise = uniform(torch.tensor(key, dtype=torch.int32), torch.empty(shape)).flatten()
    assert noise.min() >= 0 and noise.max() < 1
    word = (noise.double() * 2**24).to(torch.int64)
    for bit in range(24):
        ones = int(((word >> bit) & 1).sum())
        assert abs(ones - number / 2) < 5 * math.sqrt(number) / 2
    for bins in (word >> 14, word & 1023):  # high and low ten bits
        counts = torch.bincount(bins, minlength=1024).double()
        chi2_per_bin = float(((counts - number / 1024) ** 2).sum() / (number / 1024) / 1023)
        assert abs(chi2_per_bin - 1) < 5 * math.sqrt(2 / 1023)


def test_a_seed_reproduces_its_roundings_whatever_the_leading_dimensions_and_the_threads():
    x = torch.randn(64, 96, generator=generator(0))
    first = draws(x, FORMATS["E3M4"], 3)
    assert torch.equal(draws(x, FORMATS["E3M4"], 3), first)
    assert torch.equal(draws(x.view(4, 16, 96), FORMATS["E3M4"], 3), first.view(4, 16, 96))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(draws(x, FORMATS["E3M4"], 3), first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 5)])
def test_nothing_is_rounded_to_nothing(shape):
    assert draws(torch.empty(shape), FORMATS["E3M4"], 3).shape == shape


def test_a_key_holds_the_lowest_31_bits_of_each_of_its_words():
    key = torch.zeros(3, dtype=torch.int32)
    fill_key(key, 2**31 + 5, 70_000, 2**31 - 1)
    assert key.tolist() == [5, 70_000, 2**31 - 1]


def test_other_seeds_and_later_draws_differ():
    x = torch.randn(10_000, generator=generator(0))
    source = generator(3)
    first, second = (round_to_format(x, FORMATS["E3M4"], "stochastic", source) for _ in range(2))
    assert torch.equal(first, draws(x, FORMATS["E3M4"], 3))
    for other in (second, draws(x, FORMATS["E3M4"], 4)):
        assert 0.2 < float((other != first).double().mean()) < 0.4  # mean of 2 p (1 - p) over uniform p is 1/3


def test_a_generator_leaves_the_global_one_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    draws(torch.randn(10, generator=generator(0)), FORMATS["E3M4"], 0)
    assert torch.equal(torch.get_rng_state(), state)
