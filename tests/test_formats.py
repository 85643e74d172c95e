"""Formats as data: every derived number against the published tables, and against three outside decoders."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import gfloat
import numpy as np
import pytest
import torch

from altgrad.formats import FORMATS, equal_up_to_scale, find_format
from tests.oracles import LARGEST, PUBLISHED, decode, gfloat_twin

SMALL = [fmt for fmt in FORMATS.values() if fmt.bits <= 16]

# name: bias (None: fixed point has none), largest, smallest normal, smallest positive, finite values of both signs
# with one zero
TABLE = {
    "E0M7": (None, 127 / 128, None, 1 / 128, 255),
    "E1M6": (0, 3.96875, 2.0, 1 / 32, 255),
    "E2M5": (1, 7.875, 1.0, 2.0**-5, 255),
    "E3M4": (3, 31.0, 2.0**-2, 2.0**-6, 255),
    "E4M3": (7, 448.0, 2.0**-6, 2.0**-9, 253),
    "E5M2": (15, 57344.0, 2.0**-14, 2.0**-16, 247),
    "E6M1": (31, 1.5 * 2.0**32, 2.0**-30, 2.0**-31, 255),
    "E7M0": (63, 2.0**64, 2.0**-62, 2.0**-62, 255),
    "BF16": (127, float(torch.finfo(torch.bfloat16).max), 2.0**-126, 2.0**-133, 2 * 0x7F7F + 1),
    "FP16": (15, 65504.0, 2.0**-14, 2.0**-24, 2 * 0x7BFF + 1),
    "FP32": (127, LARGEST, 2.0**-126, 2.0**-149, 2 * 0x7F7FFFFF + 1),
}


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_derived_numbers_match_the_published_table(fmt):
    bias, largest, smallest_normal, smallest, count = TABLE[fmt.name]
    assert bias is None or fmt.bias == bias
    assert (fmt.max, fmt.min_normal, fmt.min_subnormal) == (largest, smallest_normal, smallest)
    assert 2 * fmt.max_index + 1 == count
    assert fmt.has_subnormals == (fmt.mantissa_bits > 0)


def test_the_registry_is_the_eight_splits_and_three_baselines():
    assert list(FORMATS) == list(TABLE)
    eight = [fmt for fmt in FORMATS.values() if fmt.bits == 8]
    assert [(fmt.exponent_bits, fmt.mantissa_bits) for fmt in eight] == [(e, 7 - e) for e in range(8)]


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_every_value_decodes_exactly_and_in_rising_order(fmt):
    magnitudes = fmt.magnitudes()
    assert [Fraction(value) for value in magnitudes] == [decode(fmt, code) for code in range(fmt.max_index + 1)]
    assert all(low < high for low, high in pairwise(magnitudes))
    assert all(float(np.float32(value)) == value for value in magnitudes)


@pytest.mark.parametrize(("fmt", "dtype"), PUBLISHED, ids=lambda item: getattr(item, "__name__", str(item)))
def test_codes_decode_as_in_ml_dtypes_and_the_reserved_ones_are_not_finite(fmt, dtype):
    width = {8: np.uint8, 16: np.uint16, 32: np.uint32}[max(8, fmt.bits)]
    top = 2 ** (fmt.bits - 1)
    codes = np.arange(top, dtype=width) if fmt.bits <= 16 else np.r_[0:1000, top - 2**23 - 1000 : top].astype(width)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        theirs = codes.view(dtype).astype(np.float64)
    finite = codes <= fmt.max_index
    assert [fmt.value(int(code)) for code in codes[finite]] == theirs[finite].tolist()
    assert not np.isfinite(theirs[~finite]).any()
    assert np.isposinf(theirs).any() == fmt.has_inf
    assert np.isnan(theirs).any() == fmt.has_nan


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.bits == 8], ids=str)
def test_codes_decode_as_in_gfloat(fmt):
    # Of E7M0's codes gfloat reads number 0 as its subnormals would be, 0; and all the others as powers of two.
    twin = gfloat_twin(fmt)
    assert [gfloat.decode_float(twin, code).fval for code in range(fmt.max_index + 1)] == fmt.magnitudes()
    assert twin.max == fmt.max


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_ulp_is_the_distance_to_the_next_value(fmt):
    magnitudes = fmt.magnitudes()
    for low, high in pairwise(magnitudes):
        between = (low + high) / 2
        if low > 0 or fmt.has_subnormals:
            assert fmt.ulp(low) == fmt.ulp(between) == fmt.ulp(-between) == high - low
    assert fmt.ulp(0.0) == fmt.min_subnormal


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_binades_counts_the_octaves_between_the_extremes(fmt):
    assert 2.0**fmt.binades * fmt.min_subnormal == pytest.approx(fmt.max, rel=1e-12)


def test_only_e0m7_and_e1m6_are_equal_up_to_scale():
    assert list(equal_up_to_scale(FORMATS)) == [("E0M7", "E1M6", 4.0)]


@pytest.mark.parametrize("exponent_bits", range(9))
def test_every_split_up_to_fifteen_bits_can_be_named_and_is_finite(exponent_bits):
    for mantissa_bits in range(exponent_bits == 0, 16 - exponent_bits):
        fmt = find_format(f"E{exponent_bits}M{mantissa_bits}")
        assert (fmt.exponent_bits, fmt.mantissa_bits) == (exponent_bits, mantissa_bits)
        assert fmt.bits == 1 + exponent_bits + mantissa_bits
        assert 0 < fmt.min_subnormal <= fmt.max <= LARGEST
        assert fmt.overflow == "saturate"


@pytest.mark.parametrize("name", ["E4M3b7", "E5M2b15", "E04M03", "E00M7", "E7M0b63"])
def test_two_spellings_of_one_name_give_one_format(name):
    fmt = find_format(name)
    assert fmt is FORMATS[fmt.name]


def test_a_bias_shifts_the_whole_range():
    plain, shifted = find_format("E3M4"), find_format("E3M4b5")
    assert shifted.name == "E3M4b5"
    assert [4 * value for value in shifted.magnitudes()] == plain.magnitudes()
    assert find_format("E3M4b-2").max == 32 * plain.max


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("E5M3x", "known: E0M7"),
        ("e4m3", "known: E0M7"),
        ("", "known: E0M7"),
        ("INT8", "known: E0M7"),
        ("E0M0", "E + M is 0"),
        ("E8M8", "E + M is 16"),
        ("E99M99", "E + M is 198"),
        ("E9M0", "beyond float32"),
        ("E4M3b-130", "beyond float32"),
        ("E4M3b200", "beyond float32"),
        ("E4M3b128", "beyond float32"),
        ("E8M7b128", "beyond float32"),
        ("E1M6b-127", "beyond float32"),
        ("E15M0b100", "beyond float32"),
        ("E0M7b3", "no bias"),
        ("E٤M3", "known: E0M7"),
    ],
)
def test_a_format_that_cannot_be_is_refused_in_one_line_that_names_it(name, said):
    with pytest.raises(ValueError, match="format=") as error:
        find_format(name)
    message = str(error.value)
    assert repr(name) in message and said in message and "\n" not in message


def test_overflow_to_infinity_needs_an_infinity():
    with pytest.raises(ValueError, match="no infinity"):
        dataclasses.replace(FORMATS["E4M3"], overflow="inf")
    assert dataclasses.replace(FORMATS["E5M2"], overflow="inf").overflow == "inf"


def test_listing_a_32_bit_format_is_refused():
    with pytest.raises(ValueError, match="at most 16 bits"):
        FORMATS["FP32"].magnitudes()


def test_a_format_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["E4M3"].bias = 8  # type: ignore[misc]


def test_formats_need_no_torch():
    code = "import sys, altgrad.formats; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
