"""The rounding kernel, bit for bit against outside implementations and exact arithmetic; no tolerance anywhere.

Inputs: every value, midpoint and both float32 neighbours of each midpoint; all 65536 bfloat16 patterns; a million
float32 patterns, half of them random bits (subnormals, NaN, inf, -0), half within the range of the format.
"""

from __future__ import annotations

import dataclasses
import shutil

import gfloat
import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad.formats import FORMATS, NumberFormat, find_format
from altgrad.quantization.random import draw_key, uniform
from altgrad.quantization.round import FormatTensors, round_magnitude, round_to_format, saturate, spec_of
from tests.oracles import PUBLISHED, gfloat_twin, round_by_search, round_exact, same_bits
from tests.rounding_inputs import ALL, critical_points, every_bfloat16, everything, million, wide


def rounded(x: np.ndarray, fmt: NumberFormat, rounding: str = "nearest") -> np.ndarray:
    return round_to_format(torch.from_numpy(x), fmt, rounding).numpy()


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("fmt", [fmt for fmt in ALL if fmt.bits <= 9], ids=str)
def test_critical_points_round_as_exact_arithmetic_says(fmt, rounding):
    x = critical_points(fmt)
    exact = np.float32([round_exact(float(value), fmt, rounding) for value in x])
    assert same_bits(rounded(x, fmt, rounding), exact)
    assert same_bits(round_by_search(x, fmt, rounding), exact)  # the faster oracle of the tests below


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_everything_rounds_to_the_neighbour_found_by_search(fmt, rounding):
    x = everything(fmt)
    assert same_bits(rounded(x, fmt, rounding), round_by_search(x, fmt, rounding))


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
def test_fp32_changes_nothing(rounding):
    x = everything(FORMATS["E5M2"])
    assert same_bits(rounded(x, FORMATS["FP32"], rounding), x)


@pytest.mark.parametrize(("fmt", "dtype"), PUBLISHED, ids=lambda item: getattr(item, "__name__", str(item)))
def test_everything_rounds_as_in_ml_dtypes_and_numpy(fmt, dtype):
    fmt = dataclasses.replace(fmt, overflow="saturate")
    x = everything(fmt) if fmt.bits <= 16 else million(fmt)
    signless_zero = "fnuz" in dtype.__name__
    with np.errstate(invalid="ignore"):
        theirs = np.clip(x, -fmt.max, fmt.max, dtype=np.float32).astype(dtype).astype(np.float32)
    if fmt.has_nan or signless_zero:
        assert np.array_equal(np.isnan(theirs), np.isnan(x))
    else:  # the MX formats have no NaN; ml_dtypes gives them one of their numbers
        theirs = np.where(np.isnan(x), np.nan, theirs)
    ours = rounded(x, fmt)
    assert same_bits(ours + np.float32(0), theirs) if signless_zero else same_bits(ours, theirs)


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [pair for pair in PUBLISHED if pair[0].has_inf and pair[0].bits <= 16],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
def test_overflow_to_infinity_is_that_of_ml_dtypes_and_numpy(fmt, dtype):
    fmt = dataclasses.replace(fmt, overflow="inf")
    x = everything(fmt)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = x.astype(dtype).astype(np.float32)
    assert np.isinf(theirs).sum() > np.isinf(x).sum()
    assert same_bits(rounded(x, fmt), theirs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("E4M3", torch.float8_e4m3fn),
        ("E5M2", torch.float8_e5m2),
        ("E4M3b8", torch.float8_e4m3fnuz),
        ("E5M2b16", torch.float8_e5m2fnuz),
        ("BF16", torch.bfloat16),
        ("FP16", torch.float16),
    ],
)
def test_everything_rounds_as_in_torch(name, dtype):
    fmt = find_format(name)
    x = torch.from_numpy(everything(fmt))
    if fmt.overflow == "saturate":  # whether torch's own casts saturate depends on its version
        theirs = x.clamp(-fmt.max, fmt.max).to(dtype).float().numpy()
    else:
        theirs = x.to(dtype).float().numpy()
    ours = round_to_format(x, fmt).numpy()
    assert same_bits(ours + np.float32(0), theirs) if "fnuz" in str(dtype) else same_bits(ours, theirs)


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("fmt", [fmt for fmt in ALL if fmt.reserved_codes < 2**fmt.mantissa_bits + 1], ids=str)
def test_critical_points_and_every_bfloat16_round_as_in_gfloat(fmt, rounding):
    x = np.concatenate([critical_points(fmt), every_bfloat16()])
    mode = {"nearest": gfloat.RoundMode.TiesToEven, "toward_zero": gfloat.RoundMode.TowardZero}[rounding]
    theirs = gfloat.round_ndarray(gfloat_twin(fmt), wide(x), mode, sat=fmt.overflow == "saturate")
    assert same_bits(rounded(x, fmt, rounding), theirs)


# The compiled kernel.


def _all_roundings(x, spec, key):
    fmt = FormatTensors.view(spec)
    noise = uniform(key, x)
    return [saturate(round_magnitude(x, fmt, mode, noise), x, fmt) for mode in ("nearest", "toward_zero", "stochastic")]


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="torch.compile needs a C++ compiler"
)
def test_one_compiled_graph_serves_every_format_and_equals_eager_bit_for_bit():
    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    compiled = torch.compile(_all_roundings, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(1)
    for fmt in [*ALL, FORMATS["FP32"]]:
        x = torch.from_numpy(np.concatenate([every_bfloat16(), million(fmt)[::16]]))
        arguments = x, spec_of(fmt), draw_key(generator, "cpu")
        for ours, eager in zip(compiled(*arguments), _all_roundings(*arguments), strict=True):
            assert same_bits(ours.numpy(), eager.numpy()), fmt
    assert counter.frame_count == 1
