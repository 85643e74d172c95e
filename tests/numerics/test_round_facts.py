"""What other implementations of rounding get wrong, each as a test of ours, and properties of the kernel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from altgrad.formats import FORMATS
from altgrad.quantization.kernel.round import FormatTensors, grid_index, round_to_format, ulp
from tests.references.oracles import SMALLEST, same_bits
from tests.references.rounding_inputs import (
    ALL,
    EDGES,
    EIGHT_BITS,
    OVERFLOWING,
    SPECIAL,
    every_bfloat16,
    million,
    rounded,
)

# What other implementations are known to get wrong.


def test_e4m3_between_256_and_448_is_not_zero():
    x = np.arange(256, 449, dtype=np.float32)
    assert (rounded(x, FORMATS["E4M3"]) >= 256).all()
    assert rounded(np.float32([256, 271.9, 272, 273, 300, 448]), FORMATS["E4M3"]).tolist() == [
        256, 256, 256, 288, 288, 448,
    ]  # fmt: skip


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("fmt", [*FORMATS.values(), *EDGES, *OVERFLOWING], ids=str)
def test_nan_stays_nan(fmt, rounding):
    patterns = np.uint32([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF]).view(np.float32)
    assert np.isnan(rounded(patterns, fmt, rounding)).all()


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("fmt", [*FORMATS.values(), *EDGES, *OVERFLOWING], ids=str)
def test_infinity_saturates_or_stays_but_is_never_nan(fmt, rounding):
    top = math.inf if fmt.overflow == "inf" else fmt.max
    lowest = -math.inf if fmt.overflow == "inf" else fmt.lowest
    assert rounded(np.float32([np.inf, -np.inf]), fmt, rounding).tolist() == [top, lowest]


def test_there_is_no_double_rounding_through_fp16():
    # Just above the midpoint of two E4M3 values, by less than FP16 resolves: through FP16 it would be a tie and even.
    above_tie = np.float32(1.0625 + 2**-20)
    assert np.float16(above_tie) == np.float16(1.0625)
    assert rounded(np.float32([1.0625, above_tie]), FORMATS["E4M3"]).tolist() == [1.0, 1.125]
    assert rounded(np.float32([1.1875, 1.1875 - 2**-20]), FORMATS["E4M3"]).tolist() == [1.25, 1.125]


@pytest.mark.parametrize("fmt", [fmt for fmt in EIGHT_BITS if fmt.min_normal and fmt.has_subnormals], ids=str)
def test_the_carry_from_subnormal_to_normal_arrives(fmt):
    largest_subnormal = fmt.min_normal - fmt.min_subnormal
    tie = fmt.min_normal - fmt.min_subnormal / 2
    x = np.float32([tie, np.nextafter(np.float32(tie), np.float32(0)), -tie])
    assert rounded(x, fmt).tolist() == [fmt.min_normal, largest_subnormal, -fmt.min_normal]


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_the_carry_into_the_next_binade_arrives(fmt):
    values = [value for value in fmt.magnitudes() if value > 0 and math.frexp(value)[0] == 0.5]
    below = np.nextafter(np.float32(values), np.float32(0))
    assert rounded(below, fmt).tolist() == values


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_minus_zero_and_negative_underflow_keep_their_sign_where_the_format_has_a_negative_zero(fmt, rounding):
    x = np.float32([-0.0, 0.0, -SMALLEST])
    if fmt.name == "FP32":
        x = x[:2]
    result = rounded(x, fmt, "nearest" if rounding == "stochastic" else rounding)
    negative = "fnuz" not in fmt.name and not fmt.name.startswith(("binary8p", "INT"))
    assert np.signbit(result).tolist() == [negative, False, negative][: len(x)]
    assert (result == 0).all()


def test_ties_of_e7m0_go_to_the_even_exponent_field():
    # 1.5 x 2^k between 2^k (code k + 63) and 2^(k + 1); implementations that round half away give 2^(k + 1) always.
    powers = 2.0 ** np.arange(-62, 64)
    expected = [power if (k + 63) % 2 == 0 else 2 * power for k, power in zip(range(-62, 64), powers, strict=True)]
    assert rounded((1.5 * powers).astype(np.float32), FORMATS["E7M0"]).tolist() == expected
    assert rounded(np.float32([2.0**-63]), FORMATS["E7M0"]).tolist() == [0.0]  # code 0 is even


def test_a_tie_at_the_edge_of_overflow_follows_the_parity_of_the_largest_code():
    odd_top = dataclasses.replace(FORMATS["E5M2"], overflow="inf")  # 57344 has an odd code; the next would be 65536
    even_top = dataclasses.replace(FORMATS["binary8p3se"], overflow="inf")  # 49152
    assert rounded(np.float32([61440, 61439.996]), odd_top).tolist() == [math.inf, 57344]
    assert rounded(np.float32([53248, 53248.004]), even_top).tolist() == [49152, math.inf]


def test_truncation_never_makes_a_finite_value_infinite():
    fmt = dataclasses.replace(FORMATS["E5M2"], overflow="inf")
    assert rounded(np.float32([57345, 1e30, -3e38, np.inf]), fmt, "toward_zero").tolist() == [
        57344, 57344, -57344, math.inf,
    ]  # fmt: skip


def test_another_dtype_than_float32_is_refused():
    with pytest.raises(TypeError, match=r"torch.bfloat16.*torch.float32"):
        round_to_format(torch.zeros(3, dtype=torch.bfloat16), FORMATS["E4M3"])


def test_the_lowest_value_of_two_s_complement_is_one_step_below_the_negated_largest():
    x = np.float32([126.5, 127.5, 300, -127.5, -128, -128.4, -300, np.inf, -np.inf, -0.4])
    assert rounded(x, FORMATS["INT8"]).tolist() == [126, 127, 127, -128, -128, -128, -128, 127, -128, 0]
    assert rounded(np.float32([7.5, -7.5, -8, -8.6]), FORMATS["INT4"], "toward_zero").tolist() == [7, -7, -8, -8]


# Properties.


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_rounding_is_monotone_idempotent_and_odd_where_the_range_is(fmt, rounding):
    x = np.sort(every_bfloat16()[~np.isnan(every_bfloat16())])
    once = rounded(x, fmt, rounding)
    assert (once[1:] >= once[:-1]).all()
    assert same_bits(rounded(once, fmt, rounding), once)
    odd = x[np.abs(x) <= fmt.max] if fmt.specials == "twos_complement" else x
    assert np.array_equal(rounded(-odd, fmt, rounding), -rounded(odd, fmt, rounding))


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
def test_e0m7_times_four_is_e1m6(rounding):
    x = million(FORMATS["E0M7"])
    x = x[np.abs(x) < 2.0**125]
    assert same_bits(rounded(4 * x, FORMATS["E1M6"], rounding), 4 * rounded(x, FORMATS["E0M7"], rounding))


@pytest.mark.parametrize("shift", [-20, -2, 2, 20])
def test_e7m0_is_invariant_under_powers_of_four(shift):
    x = million(FORMATS["E4M3"])
    x = x[(np.abs(x) > 2.0**-30) & (np.abs(x) < 2.0**30)]
    factor = np.float32(2.0**shift)
    assert same_bits(rounded(x * factor, FORMATS["E7M0"]), rounded(x, FORMATS["E7M0"]) * factor)


def test_e7m0_is_invariant_under_powers_of_two_except_at_ties():
    x = million(FORMATS["E4M3"])
    x = x[(np.abs(x) > 2.0**-30) & (np.abs(x) < 2.0**30) & (np.abs(np.frexp(x)[0]) != 0.75)]
    assert same_bits(rounded(2 * x, FORMATS["E7M0"]), 2 * rounded(x, FORMATS["E7M0"]))


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_grid_index_numbers_the_values_of_both_signs(fmt):
    values = torch.tensor(fmt.magnitudes())
    index = torch.arange(fmt.max_index + 1, dtype=torch.int32)
    tensors = FormatTensors.of(fmt)
    assert torch.equal(grid_index(values, tensors), index)
    assert torch.equal(grid_index(-values, tensors), -index)
    if fmt.specials == "twos_complement":
        assert grid_index(torch.tensor([fmt.lowest]), tensors).tolist() == [-fmt.max_index - 1]


def test_grid_index_of_fp32_is_the_bit_pattern():
    x = million(FORMATS["FP32"])
    x = torch.from_numpy(np.abs(x[np.isfinite(x)]))
    assert torch.equal(grid_index(x, FormatTensors.of(FORMATS["FP32"])), x.view(torch.int32))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_ulp_is_that_of_the_format(fmt):
    x = np.concatenate([million(fmt)[::1000], SPECIAL])
    x = x[np.isfinite(x)]
    assert ulp(torch.from_numpy(x), FormatTensors.of(fmt)).tolist() == [fmt.ulp(float(value)) for value in x]


def test_shapes_and_layouts_do_not_matter_and_the_input_is_left_alone():
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    expected = round_to_format(x, FORMATS["E3M4"])
    assert torch.equal(round_to_format(x.t(), FORMATS["E3M4"]), expected.t())
    assert torch.equal(round_to_format(x[:, ::2], FORMATS["E3M4"]), expected[:, ::2])
    assert round_to_format(x[:0], FORMATS["E3M4"]).shape == (0, 10)
    assert round_to_format(torch.tensor(1.3), FORMATS["E3M4"]).item() == 1.3125
    assert torch.equal(x, before)
