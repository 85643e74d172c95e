"""Codes: every bit pattern of every format up to 16 bits, against ml_dtypes, numpy and gfloat."""

from __future__ import annotations

import math

import gfloat
import numpy as np
import pytest
import torch

from altgrad.formats import FORMATS, find_format
from altgrad.quantization.kernel.codes import decode, encode
from altgrad.quantization.kernel.round import round_to_format
from tests.references.oracles import PUBLISHED, gfloat_twin, same_bits
from tests.references.rounding_inputs import ALL, critical_points, every_bfloat16


def every_code(fmt):
    codes = torch.arange(2**fmt.bits)
    return codes.to(torch.uint8) if fmt.bits <= 8 else codes.to(torch.int16)


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_every_code_comes_back_from_its_value(fmt):
    codes = every_code(fmt)
    values = decode(codes, fmt)
    again = encode(values, fmt)
    assert again.dtype == codes.dtype and values.dtype == torch.float32
    number = ~values.isnan()
    assert torch.equal(again[number], codes[number])
    assert decode(again[~number], fmt).isnan().all()
    assert len(again[~number].unique()) == (0 if not fmt.has_nan else 2 if fmt.has_negative_zero else 1)


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_every_code_decodes_as_in_gfloat(fmt):
    theirs = [gfloat.decode_float(gfloat_twin(fmt), code).fval for code in range(2**fmt.bits)]
    assert same_bits(decode(every_code(fmt), fmt).numpy(), np.array(theirs))


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [pair for pair in PUBLISHED if pair[0].bits <= 16],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
def test_what_rounding_gives_has_the_codes_of_ml_dtypes_and_numpy(fmt, dtype):
    x = np.concatenate([critical_points(fmt), every_bfloat16()])
    x = x if fmt.has_nan else x[~np.isnan(x)]
    ours = encode(round_to_format(torch.from_numpy(x), fmt), fmt)
    clipped = x if fmt.overflow == "inf" else np.clip(x, -fmt.max, fmt.max, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = clipped.astype(dtype).view(np.uint8 if fmt.bits <= 8 else np.int16)
    number = ~np.isnan(x)
    assert np.array_equal(ours.numpy()[number], theirs[number])
    assert np.isnan(ours.numpy().view(dtype).astype(np.float32)[~number]).all()


def test_integers_have_numpy_s_bit_patterns():
    values = np.arange(-128, 128)
    assert np.array_equal(encode(torch.tensor(values).float(), FORMATS["INT8"]), values.astype(np.int8).view(np.uint8))
    nibbles = encode(torch.arange(-8, 8).float(), FORMATS["INT4"])
    assert nibbles.tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]


def test_codes_worked_out_by_hand():
    cases = {
        "E4M3": ([0.0, -0.0, 448.0, 2.0**-9, math.nan], [0x00, 0x80, 0x7E, 0x01, 0x7F]),
        "E5M2": ([1.0, -57344.0, math.inf, -math.inf, math.nan], [0x3C, 0xFB, 0x7C, 0xFC, 0x7E]),
        "float8_e4m3fnuz": ([0.0, -0.0, 1.0, -240.0, math.nan], [0x00, 0x00, 0x40, 0xFF, 0x80]),
        "binary8p3se": ([1.0, math.inf, -math.inf, math.nan, -0.0], [0x40, 0x7F, 0xFF, 0x80, 0x00]),
        "E2M1": ([0.5, 6.0, -6.0, -0.0], [0b0001, 0b0111, 0b1111, 0b1000]),
    }
    for name, (values, codes) in cases.items():
        assert encode(torch.tensor(values), FORMATS[name]).tolist() == codes, name
    assert encode(torch.tensor([-2.0, 65504.0]), FORMATS["FP16"]).tolist() == [0xC000 - 0x10000, 0x7BFF]


def test_shapes_stay_and_nothing_is_something():
    codes = encode(torch.ones(2, 0, 3), FORMATS["E4M3"])
    assert codes.shape == decode(codes, FORMATS["E4M3"]).shape == (2, 0, 3)
    assert encode(torch.tensor(1.5), FORMATS["E4M3"]).shape == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("E4M3", 0.3), ("E4M3", 449.0), ("E4M3", math.inf), ("E2M1", math.nan), ("INT8", 128.0), ("INT8", -129.0)],
)
def test_a_value_that_the_format_has_not_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"encode: 1 of 2 values are not values of {name}, such as [^\n]*round"):
        encode(torch.tensor([1.0, value]), find_format(name))


def test_wrong_types_widths_and_codes_are_refused():
    with pytest.raises(TypeError, match=r"torch.float64.*torch.float32"):
        encode(torch.zeros(2, dtype=torch.float64), FORMATS["E4M3"])
    with pytest.raises(TypeError, match="a code is an integer"):
        decode(torch.zeros(2), FORMATS["E4M3"])
    with pytest.raises(ValueError, match="codes from 0 to 16; E2M1 has 4 bits"):
        decode(torch.tensor([0, 16]), FORMATS["E2M1"])
    with pytest.raises(ValueError, match="'TF32' has 19 bits"):
        encode(torch.zeros(2), FORMATS["TF32"])
