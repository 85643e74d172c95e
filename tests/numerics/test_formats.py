"""Formats as data: every derived number against the published tables, and against three outside decoders."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch

from altgrad.format_names import SYNONYMS
from altgrad.format_relations import equal_up_to_scale
from altgrad.formats import FORMATS, GROUPS, SPLITS, NumberFormat, find_format, finfo
from tests.references.oracles import LARGEST, PUBLISHED, decode, gfloat_twin, same_bits

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
    "TF32": (127, (2 - 2.0**-10) * 2.0**127, 2.0**-126, 2.0**-136, 2 * (255 * 2**10 - 1) + 1),
    "FP32": (127, LARGEST, 2.0**-126, 2.0**-149, 2 * 0x7F7FFFFF + 1),
    # OCP MX v1.0, tables 4 and 5
    "E3M2": (3, 28.0, 2.0**-2, 2.0**-4, 63),
    "E2M3": (1, 7.5, 1.0, 2.0**-3, 63),
    "E2M1": (1, 6.0, 1.0, 0.5, 15),
    "float8_e4m3fnuz": (8, 240.0, 2.0**-7, 2.0**-10, 255),
    "float8_e5m2fnuz": (16, 57344.0, 2.0**-15, 2.0**-17, 255),
    "float8_e4m3b11fnuz": (11, 30.0, 2.0**-10, 2.0**-13, 255),
    "float8_e4m3": (7, 240.0, 2.0**-6, 2.0**-9, 239),
    "float8_e3m4": (3, 15.5, 2.0**-2, 2.0**-6, 223),
    # P3109: bias 2^(7 - P); 253 finite values besides infinities and NaN, or 255
    "binary8p1se": (64, 2.0**62, 2.0**-63, 2.0**-63, 253),
    "binary8p2se": (32, 2.0**31, 2.0**-31, 2.0**-32, 253),
    "binary8p3se": (16, 1.5 * 2.0**15, 2.0**-15, 2.0**-17, 253),
    "binary8p4se": (8, 1.75 * 2.0**7, 2.0**-7, 2.0**-10, 253),
    "binary8p5se": (4, 1.875 * 2.0**3, 2.0**-3, 2.0**-7, 253),
    "binary8p6se": (2, 1.9375 * 2.0, 0.5, 2.0**-6, 253),
    "binary8p7se": (1, 1.96875, 1.0, 2.0**-6, 253),
    "binary8p1sf": (64, 2.0**63, 2.0**-63, 2.0**-63, 255),
    "binary8p2sf": (32, 1.5 * 2.0**31, 2.0**-31, 2.0**-32, 255),
    "binary8p3sf": (16, 1.75 * 2.0**15, 2.0**-15, 2.0**-17, 255),
    "binary8p4sf": (8, 1.875 * 2.0**7, 2.0**-7, 2.0**-10, 255),
    "binary8p5sf": (4, 1.9375 * 2.0**3, 2.0**-3, 2.0**-7, 255),
    "binary8p6sf": (2, 1.96875 * 2.0, 0.5, 2.0**-6, 255),
    "binary8p7sf": (1, 1.984375, 1.0, 2.0**-6, 255),
    "INT8": (None, 127.0, None, 1.0, 256),
    "INT4": (None, 7.0, None, 1.0, 16),
}


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_derived_numbers_match_the_published_table(fmt):
    bias, largest, smallest_normal, smallest, count = TABLE[fmt.name]
    assert bias is None or fmt.bias == bias
    assert (fmt.max, fmt.min_normal, fmt.min_subnormal) == (largest, smallest_normal, smallest)
    assert fmt.value_count == count
    assert fmt.lowest == {"INT8": -128, "INT4": -8}.get(fmt.name, -largest)
    assert fmt.has_subnormals == (fmt.mantissa_bits > 0)


def test_the_registry_is_the_table_and_begins_with_the_eight_splits():
    assert list(FORMATS) == list(TABLE)
    assert [(fmt.exponent_bits, fmt.mantissa_bits) for fmt in SPLITS] == [(e, 7 - e) for e in range(8)]
    assert [fmt for group in GROUPS.values() for fmt in group] == list(FORMATS.values())


def test_only_formats_that_are_used_without_scales_are_left_unscaled():
    assert [fmt.name for fmt in FORMATS.values() if not fmt.scaled] == ["BF16", "FP16", "TF32", "FP32"]
    assert not find_format("E8M4").scaled and find_format("E7M4").scaled


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_every_value_decodes_exactly_and_in_rising_order(fmt):
    magnitudes = fmt.magnitudes()
    assert [Fraction(value) for value in magnitudes] == [decode(fmt, code) for code in range(fmt.max_index + 1)]
    assert all(low < high for low, high in pairwise(magnitudes))
    assert all(float(np.float32(value)) == value for value in magnitudes)


@pytest.mark.parametrize(("fmt", "dtype"), PUBLISHED, ids=lambda item: getattr(item, "__name__", str(item)))
def test_codes_of_both_signs_decode_as_in_ml_dtypes(fmt, dtype):
    width = {8: np.uint8, 16: np.uint16, 32: np.uint32}[max(8, fmt.bits)]
    top = 2 ** (fmt.bits - 1)
    few = np.r_[0:1000, top - 2**23 - 1000 : top - 2**23 + 1000, top - 10 : top]
    codes = np.arange(2 * top) if fmt.bits <= 16 else np.r_[few, few + top]
    with np.errstate(invalid="ignore"):  # signalling NaNs
        theirs = codes.astype(width).view(dtype).astype(np.float64)
    assert same_bits(np.array([fmt.decode(int(code)) for code in codes]), theirs)
    assert np.isposinf(theirs).any() == fmt.has_inf
    assert np.isnan(theirs).any() == fmt.has_nan
    assert (np.signbit(theirs) & (theirs == 0)).any() == fmt.has_negative_zero


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_every_code_of_both_signs_decodes_as_gfloat_twin(fmt):
    # Of E7M0's codes gfloat reads number 0 as its subnormals would be, 0; and all the others as powers of two.
    twin = gfloat_twin(fmt)
    assert (twin.bits, twin.max, twin.min) == (fmt.bits, fmt.max, fmt.lowest)
    theirs = [gfloat.decode_float(twin, code).fval for code in range(2**fmt.bits)]
    assert same_bits(np.array([fmt.decode(code) for code in range(2**fmt.bits)]), np.array(theirs))


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_finfo_says_what_gfloat_says(fmt):
    twin, info = gfloat_twin(fmt), finfo(fmt.name)
    assert (info.bits, info.max, info.min) == (twin.bits, twin.max, twin.min)
    assert info.smallest_normal == (twin.smallest_normal if fmt.exponent_bits else None)
    assert info.smallest_subnormal == (twin.smallest_subnormal if twin.precision > 1 else None)
    assert (info.has_nan, info.has_inf, info.has_negative_zero) == (twin.num_nans > 0, twin.num_infs > 0, twin.has_nz)
    assert (info.nexp, info.nmant) == (twin.expBits, twin.tSignificandBits)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(fmt.name, dtype) for fmt, dtype in PUBLISHED if fmt.name != "FP32"],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
def test_finfo_says_what_ml_dtypes_says(name, dtype):
    info, theirs = finfo(name), ml_dtypes.finfo(dtype)
    assert (info.bits, info.nexp, info.nmant) == (theirs.bits, theirs.nexp, theirs.nmant)
    for field in ("max", "min", "eps", "smallest_normal", "smallest_subnormal"):
        assert getattr(info, field) == float(getattr(theirs, field)), field


def test_eps_is_absent_where_one_or_the_next_value_is_not_in_the_format():
    assert finfo("E0M7").eps is None and finfo("E1M6b2").eps is None and finfo("E1M6").eps == 2.0**-5
    assert finfo("INT4").eps == 1.0 and finfo("E7M0").eps == 1.0


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


def test_of_the_eight_splits_only_e0m7_and_e1m6_are_equal_up_to_scale():
    assert list(equal_up_to_scale({fmt.name: fmt for fmt in SPLITS})) == [("E0M7", "E1M6", 4.0)]


def test_formats_with_other_specials_can_have_the_same_values_up_to_scale():
    pairs = list(equal_up_to_scale(FORMATS))
    assert ("float8_e4m3fnuz", "binary8p4sf", 1.0) in pairs and (
        "float8_e4m3fnuz",
        "float8_e4m3b11fnuz",
        0.125,
    ) in pairs
    assert not any("INT8" in pair for pair in pairs), "INT8 has a value more below zero"


@pytest.mark.parametrize("exponent_bits", range(9))
def test_every_split_up_to_fifteen_bits_can_be_named(exponent_bits):
    for mantissa_bits in range(exponent_bits in (0, 8), 16 - exponent_bits):
        fmt = find_format(f"E{exponent_bits}M{mantissa_bits}")
        assert (fmt.exponent_bits, fmt.mantissa_bits) == (exponent_bits, mantissa_bits)
        assert fmt.bits == 1 + exponent_bits + mantissa_bits
        assert 0 < fmt.min_subnormal <= fmt.max <= LARGEST
        assert fmt.overflow == ("inf" if fmt.name in ("FP16", "BF16") else "saturate")


@pytest.mark.parametrize(("name", "usual"), SYNONYMS.items())
def test_a_synonym_is_the_registered_format_itself(name, usual):
    assert find_format(name) is FORMATS[usual]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("E5M10", "FP16"), ("E5M10b15", "FP16"), ("E08M07", "BF16"), ("E8M23", "FP32"), ("E8M10", "TF32")],
)
def test_a_name_that_is_published_is_that_format(spelling, name):
    assert find_format(spelling) is FORMATS[name]


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
        ("", "known: E0M7"),
        ("INT16", "did you mean 'INT8'?"),
        ("e4m3", "did you mean 'E4M3'?"),
        ("float8_e4m3fnu", "did you mean 'float8_e4m3fnuz'?"),
        ("E8M0", "a format of scales"),
        ("E8M0b127", "a format of scales"),
        ("float8_e8m0fnu", "a format of scales"),
        ("NVFP4", "its elements are E2M1"),
        ("MXFP8", "write format: E4M3"),
        ("FP8", "write E4M3 or E5M2"),
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


def test_specials_that_do_not_go_with_the_fields_are_refused():
    with pytest.raises(ValueError, match="two's complement is for integers"):
        NumberFormat("x", 4, 3, 7, "twos_complement")
    with pytest.raises(ValueError, match="no scale helps"):
        NumberFormat("x", 8, 3, 127, "ieee")
    with pytest.raises(ValueError, match="no finite value besides 0"):
        NumberFormat("x", 0, 1, 0, "fn")


def test_listing_a_32_bit_format_is_refused():
    with pytest.raises(ValueError, match="at most 16 bits"):
        FORMATS["FP32"].magnitudes()


def test_a_format_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["E4M3"].bias = 8  # type: ignore[misc]


def test_formats_need_no_torch():
    code = "import sys, altgrad.formats; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
