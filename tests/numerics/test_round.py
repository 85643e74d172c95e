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

from altgrad.formats import FORMATS, find_format
from altgrad.quantization.kernel.compiled import INDUCTOR_OPTIONS
from altgrad.quantization.kernel.random import draw_key, uniform
from altgrad.quantization.kernel.round import FormatTensors, round_magnitude, round_to_format, saturate, spec_of
from tests.references.oracles import PUBLISHED, gfloat_twin, round_by_search, round_exact, same_bits
from tests.references.rounding_inputs import ALL, critical_points, every_bfloat16, everything, million, rounded, wide


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
    with np.errstate(invalid="ignore"):
        theirs = np.clip(x, -fmt.max, fmt.max, dtype=np.float32).astype(dtype).astype(np.float32)
    if fmt.has_nan:
        assert np.array_equal(np.isnan(theirs), np.isnan(x))
    else:  # the MX formats have no NaN; ml_dtypes gives them one of their numbers
        theirs = np.where(np.isnan(x), np.nan, theirs)
    assert same_bits(rounded(x, fmt), theirs)


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
        ("float8_e4m3fnuz", torch.float8_e4m3fnuz),
        ("float8_e5m2fnuz", torch.float8_e5m2fnuz),
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
    assert same_bits(round_to_format(x, fmt).numpy(), theirs)


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_critical_points_and_every_bfloat16_round_as_in_gfloat(fmt, rounding):
    x = np.concatenate([critical_points(fmt), every_bfloat16()])
    mode = {"nearest": gfloat.RoundMode.TiesToEven, "toward_zero": gfloat.RoundMode.TowardZero}[rounding]
    theirs = gfloat.round_ndarray(gfloat_twin(fmt), wide(x), mode, sat=fmt.overflow == "saturate")
    assert same_bits(rounded(x, fmt, rounding), theirs)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.specials == "twos_complement"], ids=str)
def test_integers_round_half_to_even_and_clip_as_in_numpy(fmt):
    x = everything(fmt)
    lowest, highest = -(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1
    theirs = np.clip(np.round(wide(x)), lowest, highest).astype(np.float32) + np.float32(0)
    assert (theirs == lowest).any() and (theirs == highest).any()
    assert same_bits(rounded(x, fmt), theirs)
    truncated = np.clip(np.trunc(wide(x)), lowest, highest).astype(np.float32) + np.float32(0)
    assert same_bits(rounded(x, fmt, "toward_zero"), truncated)


def test_tf32_keeps_ten_mantissa_bits_as_integer_arithmetic_on_the_bit_pattern_says():
    halfway = (np.arange(2**19, dtype=np.uint32) << 13) + np.uint32(2**12)  # every sign, exponent and TF32 mantissa
    patterns = np.concatenate([halfway, halfway + np.uint32(1), halfway - np.uint32(1), halfway ^ np.uint32(2**12)])
    x = np.concatenate([patterns.view(np.float32), everything(FORMATS["E5M2"])])
    bits = x.view(np.uint32).astype(np.uint64)
    to_even = ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    assert same_bits(rounded(x, FORMATS["TF32"]), np.where(np.isnan(x), x, to_even))
    cut = (bits & 0xFFFFE000).astype(np.uint32).view(np.float32)
    assert same_bits(rounded(x, FORMATS["TF32"], "toward_zero"), np.where(np.isnan(x), x, cut))


@pytest.mark.parametrize("fmt", [fmt for fmt in ALL if fmt.bits <= 8], ids=str)
def test_stochastic_rounding_goes_up_where_gfloat_does_with_the_same_random_bits(fmt):
    # 24 bits: gfloat's "fastest" compares the distance plus the bits with 1, ours the distance with the noise.
    x = np.concatenate([critical_points(fmt), every_bfloat16()])
    noise = np.random.default_rng(fmt.max_index).integers(0, 2**24, x.size)
    tensors, inputs = FormatTensors.of(fmt), torch.from_numpy(x)
    magnitude = round_magnitude(inputs, tensors, "stochastic", torch.from_numpy(noise.astype(np.float32)) * 2.0**-24)
    ours = saturate(magnitude, inputs, tensors).numpy()
    theirs = gfloat.round_ndarray(
        gfloat_twin(fmt),
        wide(x),
        gfloat.RoundMode.StochasticFastest,
        sat=fmt.overflow == "saturate",
        srbits=2**24 - 1 - noise,
        srnumbits=24,
    )
    # distance > noise x 2^-24 here, distance + (2^24 - 1 - noise) x 2^-24 >= 1 there: apart where the distance lies
    # between noise and noise + 1, all others agree
    steps = np.abs(wide(x)) / np.array([fmt.ulp(float(value)) if np.isfinite(value) else 1.0 for value in x])
    with np.errstate(invalid="ignore"):
        fraction = (steps - np.floor(steps)) * 2.0**24
    decided = ~((fraction > noise) & (fraction < noise + 1))
    assert decided.mean() > 0.95
    assert same_bits(ours[decided], theirs[decided])


# The compiled kernel.


def _all_roundings(x, spec, key):
    fmt = FormatTensors.view(spec)
    noise = uniform(key, x)
    return [saturate(round_magnitude(x, fmt, mode, noise), x, fmt) for mode in ("nearest", "toward_zero", "stochastic")]


@pytest.mark.compiled
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="torch.compile needs a C++ compiler"
)
def test_one_compiled_graph_serves_every_format_and_equals_eager_bit_for_bit():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(_all_roundings, fullgraph=True, options=INDUCTOR_OPTIONS)
    generator = torch.Generator().manual_seed(1)
    for fmt in [*ALL, FORMATS["TF32"], FORMATS["FP32"]]:
        x = torch.from_numpy(np.concatenate([every_bfloat16(), million(fmt)[::16]]))
        arguments = x, spec_of(fmt), draw_key(generator, "cpu")
        for ours, eager in zip(compiled(*arguments), _all_roundings(*arguments), strict=True):
            assert same_bits(ours.numpy(), eager.numpy()), fmt
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
