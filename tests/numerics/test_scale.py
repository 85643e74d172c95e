"""Scaling: which factor, shared by which values, and what becomes of zeros, infinities, NaN and extreme magnitudes.

The oracle loops over single values; power-of-two scaling is compared bit for bit.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from altgrad.config.recipe import Recipe
from altgrad.formats import FORMATS, SPLITS, NumberFormat
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.kernel.round import FormatTensors, round_to_format, spec_of
from altgrad.quantization.kernel.scale import scale_for
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site
from altgrad.quantization.kernel.tiles import finite_amax, join, split
from altgrad.quantization.quantize import quantize_model
from tests.references.oracles import LARGEST, SMALLEST, power_of_two_scale, quantise_by_hand, same_bits

EIGHT_BITS = SPLITS
GRANULARITIES = ["tensor", "row", "1x32"]
AMAXES = [
    SMALLEST,
    1e-45,
    1e-40,
    2.0**-126,
    1e-30,
    0.9,
    1.0,
    1.0000001,
    447.99997,
    448.0,
    448.00003,
    1e30,
    3e38,
    LARGEST,
]


def site_round(x: torch.Tensor, fmt: NumberFormat, history: tuple[float, ...] = (), **changes):
    mode = Mode("nearest", "dynamic", "tensor", True, "1.0")._replace(**changes)
    key = torch.tensor([1, 2], dtype=torch.int32)
    rounded, counts = round_site(x, spec_of(fmt), torch.tensor(history), key, mode)
    return rounded, dict(zip(COUNTERS, counts.tolist(), strict=True))


def spread(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values times powers of two from 2^-12 to 2^12 per element, with a few zeros."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source) * 2.0 ** torch.randint(-12, 13, shape, generator=source)
    return torch.where(torch.rand(shape, generator=source) < 0.05, 0.0, x)


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_the_power_of_two_scale_puts_amax_into_the_upper_octave_of_the_format(fmt):
    random = np.random.default_rng(0)
    amaxes = [*AMAXES, *(fmt.max * 2.0 ** np.arange(-20, 21)), *np.exp(random.uniform(-80, 80, 200))]
    amax = torch.tensor(amaxes, dtype=torch.float32)
    scale, inverse = scale_for(amax, FormatTensors.of(fmt), power_of_two=True)
    assert scale.tolist() == [power_of_two_scale(value, fmt) for value in amax.tolist()]
    assert torch.equal(inverse, 1 / scale)
    inside = (amax > fmt.max * 2.0**-126) & (amax <= fmt.max * 2.0**126) & (amax <= fmt.max * scale.double())
    on_grid = (amax * inverse)[inside]
    assert (on_grid <= fmt.max).all() and (on_grid > fmt.max / 2).all()


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_the_real_scale_puts_amax_at_the_largest_value_and_never_beyond(fmt):
    random = np.random.default_rng(1)
    amax = torch.tensor(np.exp(random.uniform(-40, 40, 200_000)), dtype=torch.float32)
    scale, inverse = scale_for(amax, FormatTensors.of(fmt), power_of_two=False)
    on_grid = amax * inverse
    assert (on_grid <= fmt.max).all()
    assert (on_grid >= fmt.max * (1 - 3 * 2.0**-24)).all()
    published = np.float32(fmt.max) / amax.numpy()
    assert np.array_equal(scale.numpy(), np.float32(1) / published)
    assert ((inverse.numpy() == published) | (inverse.numpy() == np.nextafter(published, np.float32(0)))).all()
    assert (round_to_format(on_grid, fmt) == fmt.max).all()


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_extreme_magnitudes_get_a_finite_scale_and_a_finite_result(fmt, power_of_two):
    for amax in AMAXES:
        x = torch.tensor([amax, -amax, 0.0])
        rounded, counts = site_round(x, fmt, power_of_two=power_of_two)
        assert 0 < counts["scale"] < math.inf
        if fmt.overflow == "saturate":
            assert rounded.isfinite().all()
        if power_of_two:
            assert torch.equal(rounded / counts["scale"], round_to_format(rounded / counts["scale"], fmt))
        if fmt.name != "FP16" and fmt.max * 2.0**-126 < amax < min(fmt.max * 2.0**126, 1.7e38):  # FP16 has no scale
            assert counts["overflow"] == 0
            integers = fmt.specials == "twos_complement"
            bound = 1 / fmt.max if integers else 2.0 ** -(fmt.mantissa_bits + 1) * 1.0001  # half a step of max / 2
            assert abs(float(rounded[0]) / amax - 1) <= bound or amax < 1e-37
            assert rounded[1] == -rounded[0] and rounded[2] == 0


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_zeros_stay_zeros_with_their_sign_under_scale_one(fmt, granularity, power_of_two):
    x = torch.tensor([[0.0, -0.0, 0.0]])
    rounded, counts = site_round(x, fmt, granularity=granularity, power_of_two=power_of_two)
    assert same_bits(rounded.numpy(), x.numpy())
    assert counts == {"nonzero": 0, "overflow": 0, "underflow": 0, "saturated": 0, "uses": 1, "amax": 0, "scale": 1}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_infinity_saturates_and_nan_stays_without_touching_the_other_values(fmt, granularity):
    x = spread(3, 40)
    clean = site_round(x, fmt, granularity=granularity)[0]
    smallest = x.abs().argmin(dim=-1)  # not the ones that give the scale
    for row, value in enumerate((math.inf, -math.inf, math.nan)):
        x[row, smallest[row]] = value
    rounded, counts = site_round(x, fmt, granularity=granularity)
    mask = x.isfinite()
    assert torch.equal(rounded[mask], clean[mask])
    assert rounded[0, smallest[0]] > 0 and rounded[1, smallest[1]] < 0
    assert rounded[:2].isfinite().all() and rounded[2, smallest[2]].isnan()
    assert math.isfinite(counts["amax"]) and math.isfinite(counts["scale"])
    expected, expected_counts = quantise_by_hand(x.numpy(), fmt, granularity)
    assert same_bits(rounded.numpy(), expected)
    assert counts == expected_counts


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_tensor_without_a_finite_value_has_scale_one(granularity, value):
    rounded, counts = site_round(torch.full((2, 3), value), FORMATS["E4M3"], granularity=granularity)
    expected = math.copysign(448, value) if not math.isnan(value) else math.nan
    assert same_bits(rounded.numpy(), np.full((2, 3), expected, np.float32))
    assert (counts["amax"], counts["scale"]) == (0, 1)


@pytest.mark.parametrize("shape", [(7, 64), (5, 40), (3, 1), (2, 3, 33), (31,), (96,)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "fmt", [*EIGHT_BITS, *(FORMATS[name] for name in ("FP16", "INT8", "float8_e4m3fnuz"))], ids=str
)
def test_power_of_two_scaling_equals_a_loop_over_single_values_with_all_its_counts(fmt, granularity, shape):
    x = spread(*shape, seed=sum(shape))
    for factor, rounding in ((1.0, "nearest"), (0.25, "nearest"), (1.0, "toward_zero")):
        rounded, counts = site_round(x, fmt, granularity=granularity, amax_factor=factor, rounding=rounding)
        expected, expected_counts = quantise_by_hand(x.numpy(), fmt, granularity, rounding=rounding, factor=factor)
        assert same_bits(rounded.numpy(), expected)
        assert counts == expected_counts


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_without_scaling_the_values_themselves_are_rounded(fmt):
    x = spread(16, 40)
    rounded, counts = site_round(x, fmt, scaling="none")
    expected, expected_counts = quantise_by_hand(x.numpy(), fmt, scaled=False)
    assert same_bits(rounded.numpy(), expected)
    assert counts == expected_counts
    assert same_bits(rounded.numpy(), round_to_format(x, fmt).numpy())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
def test_real_scaling_rounds_every_group_on_its_own_grid(fmt, granularity):
    x = spread(4, 70)
    rounded, _ = site_round(x, fmt, granularity=granularity, power_of_two=False)
    width = {"tensor": 70, "row": 70, "1x32": 32}[granularity]
    groups = (
        [x] if granularity == "tensor" else [x[row, i : i + width] for row in range(4) for i in range(0, 70, width)]
    )
    results = (
        [rounded]
        if granularity == "tensor"
        else [rounded[row, i : i + width] for row in range(4) for i in range(0, 70, width)]
    )
    for group, result in zip(groups, results, strict=True):
        amax = group.abs().max()
        scale, inverse = scale_for(amax, FormatTensors.of(fmt), power_of_two=False)
        assert torch.equal(result, round_to_format(group * inverse, fmt) * scale)
        assert float(result.abs().max()) == pytest.approx(float(amax), rel=1e-6)


def test_delayed_scaling_uses_the_largest_remembered_amax_and_the_current_one_at_first():
    x = torch.tensor([1.0, 3.0, 1000.0])
    fresh, counts = site_round(x, FORMATS["E4M3"], (0.0, 0.0, 0.0), scaling="delayed")
    assert torch.equal(fresh, site_round(x, FORMATS["E4M3"])[0]) and counts["overflow"] == 0
    later, counts = site_round(x, FORMATS["E4M3"], (0.5, 7.0, 0.0), scaling="delayed")
    scale = power_of_two_scale(7.0, FORMATS["E4M3"])
    assert later.tolist() == [1.0, 3.0, 448 * scale]
    assert counts == {
        "nonzero": 3,
        "overflow": 1,
        "underflow": 0,
        "saturated": 1,
        "uses": 1,
        "amax": 1000,
        "scale": scale,
    }


def test_the_history_forgets_after_its_length():
    recipe = Recipe(format="E4M3", scaling="delayed", amax_history=3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    quantized = quantize_model(model, recipe)
    largest = []
    for step, amax in enumerate((8.0, 1.0, 2.0, 3.0, 0.5, 0.5, 0.5), start=1):
        quantized.begin_step(0, step)
        model(torch.tensor([[0.0, -amax, amax / 2, 0.0]])).sum().backward()
        quantized.after_optimizer()
        largest.append(float(quantized.histories()["0.activation"].max()))
    assert largest == [8.0, 8.0, 8.0, 3.0, 3.0, 3.0, 0.5]


@pytest.mark.parametrize("shape", [(32,), (5, 64), (2, 3, 45), (4, 1)])
def test_blocks_come_back_as_they_went_and_are_padded_with_zeros(shape):
    x = spread(*shape)
    blocks = split(x, "1x32", last=True)
    assert blocks.shape == (*shape[:-1], math.ceil(shape[-1] / 32), 32)
    assert torch.equal(join(blocks, x, "1x32", last=True), x)
    assert torch.count_nonzero(blocks) == torch.count_nonzero(x)
    assert finite_amax(blocks, "1x32", True).shape == (*blocks.shape[:-1], 1)


@pytest.mark.parametrize("power_of_two", [True, False])
def test_e0m7_and_e1m6_agree_bit_for_bit_under_max_abs_scaling(power_of_two):
    for granularity, seed in itertools.product(GRANULARITIES, range(5)):
        x = spread(8, 50, seed=seed)
        first, second = (
            site_round(x, FORMATS[name], granularity=granularity, power_of_two=power_of_two)[0]
            for name in ("E0M7", "E1M6")
        )
        assert same_bits(first.numpy(), second.numpy())


@pytest.mark.parametrize("name", ["BF16", "FP32"])
def test_formats_with_the_range_of_float32_are_not_scaled(name):
    x = spread(8, 50)
    for power_of_two in (True, False):
        rounded, counts = site_round(x, FORMATS[name], power_of_two=power_of_two)
        assert counts["scale"] == 1
        assert torch.equal(rounded, x.bfloat16().float() if name == "BF16" else x)


# Signal to quantisation noise in dB for E0M7 .. E7M0 with one real scale per tensor, 400k samples.
NORMAL = [39.4, 39.4, 42.6, 37.5, 31.5, 25.6, 19.7, 14.2]
LOG_NORMAL = [18.2, 18.2, 21.6, 32.4, 33.0, 26.9, 19.7, 15.7]  # sigma 2.5, as gradients are
LOG_NORMAL_UNDERFLOW = [0.993, 0.993, 0.986, 0.916, 0.293, 0, 0, 0]


def signal_to_noise(x: torch.Tensor, fmt: NumberFormat) -> tuple[float, float]:
    """(SQNR in dB, share of values rounded to zero)."""
    rounded, counts = site_round(x, fmt, power_of_two=False)
    noise = (rounded.double() - x.double()).square().sum()
    return 10 * math.log10(x.double().square().sum() / noise), counts["underflow"] / counts["nonzero"]


@pytest.mark.parametrize(("fmt", "expected"), list(zip(EIGHT_BITS, NORMAL, strict=True)), ids=str)
def test_noise_on_normal_data_is_that_of_the_reference(fmt, expected):
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    assert signal_to_noise(x, fmt)[0] == pytest.approx(expected, abs=0.15)


def test_noise_on_gradient_like_data_is_that_of_the_reference():
    # A few largest values carry nearly all the power and set the scale: seeds differ by 2 dB, so their mean counts.
    seeds = range(8)
    measured = np.zeros((len(EIGHT_BITS), 2))
    for seed in seeds:
        x = torch.exp(2.5 * torch.randn(400_000, generator=torch.Generator().manual_seed(seed)))
        measured += np.array([signal_to_noise(x, fmt) for fmt in EIGHT_BITS]) / len(seeds)
    assert measured[:, 0] == pytest.approx(LOG_NORMAL, abs=2.5)
    assert measured[:, 1] == pytest.approx(LOG_NORMAL_UNDERFLOW, abs=0.05)
