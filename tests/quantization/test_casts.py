"""Casts against other libraries and slow loops: blocks along both dimensions, scale rules, two levels, rotation."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from altgrad.config.cast import Cast
from altgrad.formats import find_format
from altgrad.quantization.fake_quantize import fake_quantize
from altgrad.quantization.kernel.rotation import hadamard, rotated, unrotated
from altgrad.quantization.kernel.round import FormatTensors, spec_of
from altgrad.quantization.kernel.scale import settled_amax, two_level_scale
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site

TYPES = {
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E2M1": ml_dtypes.float4_e2m1fn,
}
LARGEST = {name: float(ml_dtypes.finfo(kind).max) for name, kind in TYPES.items()}


def spread(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values over many binades, with a row of zeros and rows near both ends of float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * torch.exp(3 * torch.randn(*shape[:-1], 1, generator=generator))
    x[0] = 0
    x[1] *= 1e-30
    x[2] *= 1e30
    return x


def by_hand(x: np.ndarray, name: str, rule: str) -> np.ndarray:
    """One tile by the published rule, element by element in float64, through ml_dtypes' own conversion."""
    amax = float(np.abs(x).max())
    if amax == 0:
        return x
    mantissa, exponent = math.frexp(amax)  # amax = 2 mantissa x 2^(exponent - 1)
    top_mantissa, top_exponent = math.frexp(LARGEST[name])
    if rule == "even":
        bits = {"E4M3": 3, "E5M2": 2, "E2M3": 3, "E3M2": 2, "E2M1": 1}[name]
        carries = math.floor((2 * mantissa - 1) * 2**bits + 0.5) >= 2**bits
    else:
        carries = {"floor": False, "ceil": mantissa > top_mantissa, "ceil_amax": mantissa > 0.5}[rule]
    scale = 2.0 ** max(-126, exponent - top_exponent + carries)
    scaled = np.clip(x.astype(np.float64) / scale, -LARGEST[name], LARGEST[name])
    return (scaled.astype(TYPES[name]).astype(np.float64) * scale).astype(np.float32)


@pytest.mark.parametrize("rule", ["floor", "ceil", "ceil_amax", "even"])
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("tile", [(1, 32), (1, 16), (4, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("dimension", ["last", "first"])
def test_tiles_are_scaled_by_the_published_rules(rule, name, tile, dimension):
    x = spread(48, 80)
    ours = fake_quantize(x, Cast(format=name, block=f"{tile[0]}x{tile[1]}", scale_rule=rule), dimension).numpy()
    rows, columns = tile if dimension == "last" else tile[::-1]
    for row in range(0, 48, rows):
        for column in range(0, 80, columns):
            part = np.s_[row : row + rows, column : column + columns]
            np.testing.assert_array_equal(ours[part], by_hand(x.numpy()[part], name, rule))


@pytest.mark.parametrize("axis", ["last", "first"])
@pytest.mark.parametrize("name", TYPES)
def test_mx_casts_are_those_of_torchao(name, axis):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    constants = pytest.importorskip("torchao.prototype.mx_formats.constants")
    kind = {
        "E4M3": torch.float8_e4m3fn,
        "E5M2": torch.float8_e5m2,
        "E2M3": constants.DTYPE_FP6_E2M3,
        "E3M2": constants.DTYPE_FP6_E3M2,
        "E2M1": torch.float4_e2m1fn_x2,
    }[name]
    rules = {"floor": "FLOOR", "ceil_amax": "CEIL", "ceil": "RCEIL", "even": "EVEN"}
    x = spread(64, 256)
    seen = x if axis == "last" else x.t().contiguous()
    for rule, theirs in rules.items():
        scale, data = mx.to_mx(seen, kind, 32, getattr(mx.ScaleCalculationMode, theirs))
        expected = mx.to_dtype(data, scale, kind, 32, torch.float32)
        ours = fake_quantize(x, Cast(format=name, block="1x32", scale_rule=rule), axis)
        assert torch.equal(ours, expected if axis == "last" else expected.t()), rule


def test_two_level_scales_are_those_of_torchao():
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 256, generator=generator) * torch.exp(torch.randn(64, 1, generator=generator))
    whole = nvfp4.per_tensor_amax_to_scale(x.abs().max())
    scales, data = nvfp4.nvfp4_quantize(x, 16, whole)
    values = kernels.f4_unpacked_to_f32(kernels.unpack_uint4(data)).view(64, 16, 16)
    expected = (values * (whole * scales.float().view(64, 16, 1))).view(64, 256)
    cast = Cast(format="E2M1", block="1x16", scale_rule="real", scale_format="E4M3")
    assert torch.equal(fake_quantize(x, cast), expected)


def test_two_level_scales_by_hand():
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 0], x[1, 1] = 6.0, 1.0, 0.26
    cast = Cast(format="E2M1", block="1x16", scale_rule="real", scale_format="E4M3")
    # the tensor's scale is 6 / (448 x 6) = 1/448; the second tile's 1/6 in units of it is 74.67, in E4M3 72
    scale = np.float32(72) * np.float32(1 / 448)
    expected = [float(np.float32(6) * scale), float(np.float32(1.5) * scale)]  # 1 / scale = 6.22, 0.26 / scale = 1.618
    rounded = fake_quantize(x, cast)
    assert rounded[0, 0] == 6.0 and rounded[1, :2].tolist() == pytest.approx(expected, rel=1e-7)


def test_two_level_scales_at_their_ends():
    """The tensor's scale is 1; a tile's is amax / 6 in E4M3, to nearest, at least its smallest normal value, 2^-6."""
    fmt, scale_format = (FormatTensors.of(find_format(name)) for name in ("E2M1", "E4M3"))
    amax = torch.tensor([2688.0, 6.0, 6.42, 0.006, 0.0])
    whole, of_tile, inverse = two_level_scale(amax, amax.max(), fmt, scale_format)
    scale = whole * of_tile
    assert scale.tolist() == [448, 1, 1.125, 2**-6, 2**-6] and torch.equal(inverse, 1 / scale)
    whole, of_tile, inverse = two_level_scale(torch.zeros(1), torch.tensor(0.0), fmt, scale_format)
    scale = whole * of_tile
    assert (scale.item(), inverse.item()) == (2**-6, 64)


@pytest.mark.parametrize("amax", [1e-30, 1e-33, 1e-34, 1e-38, 1e-45])
def test_zeros_beside_tiny_values_stay_zeros_under_two_level_scales(amax):
    x = torch.zeros(3, 16)
    x[0, 0], x[2, 0] = amax, amax / 1000
    rounded = fake_quantize(x, Cast(format="E2M1", block="1x16", scale_rule="real", scale_format="E4M3"))
    assert (rounded[x == 0] == 0).all() and rounded.isfinite().all()
    assert rounded[0, 0].item() == pytest.approx(amax, rel=0.07, abs=2**-127)


@pytest.mark.parametrize("block", ["1x16", "16x16"])
@pytest.mark.parametrize(
    "scales", [{}, {"scale_rule": "real", "scale_format": "FP32"}, {"scale_rule": "real", "scale_format": "E4M3"}]
)
@pytest.mark.parametrize("name", ["E0M7", "E2M1", "E4M3", "INT8", "E7M0"])
def test_finite_values_of_any_size_stay_finite_and_zeros_stay_zeros(name, scales, block):
    ends = [2.0**exponent for exponent in range(-149, 128, 4)] + [float(np.finfo(np.float32).max)]
    for amax in ends:
        for beside in (0.0, amax, -amax, amax / 1000):
            x = torch.zeros(16, 32)
            x[0, 0], x[1, 20], x[2, 3] = amax, beside, -amax
            rounded = fake_quantize(x, Cast(format=name, block=block, **scales))
            assert rounded.isfinite().all() and (rounded[x == 0] == 0).all(), (amax, beside)


def test_an_amax_less_than_half_a_ulp_above_a_largest_value_counts_as_that():
    """E4M3: 448 under a power of two; half a ULP of it is 16, so that 464 is not less."""
    e4m3, bf16 = (FormatTensors.of(find_format(name)) for name in ("E4M3", "BF16"))
    amax = torch.tensor([200.0, 448.0, 448.03, 463.9, 464.0, 900.0])
    assert settled_amax(amax, e4m3).tolist() == [200, 448, 448, 448, 464, 896]
    assert torch.equal(settled_amax(amax, bf16), amax)  # which is never scaled


@pytest.mark.parametrize("size", [2, 16, 64])
def test_the_hadamard_matrix_is_orthogonal_and_made_of_plus_and_minus_one(size):
    matrix = hadamard(size).double() * size**0.5
    torch.testing.assert_close(matrix.abs(), torch.ones(size, size, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix @ matrix.t(), size * torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", [None, (3, 4)])
@pytest.mark.parametrize("shape", [(24, 40), (2, 5, 33)], ids=str)
def test_a_rotation_leaves_the_product_as_it_was_and_is_undone_exactly(shape, key):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(*shape, generator=generator)
    b = torch.randn(7, shape[-1], generator=generator)
    words = None if key is None else torch.tensor(key, dtype=torch.int32)
    turned, other = (rotated(x, 16, True, words) for x in (a, b))
    torch.testing.assert_close(turned @ other.t(), a @ b.t(), rtol=1e-5, atol=1e-5)
    rows = a.reshape(-1, shape[-1])
    left, right = rotated(a, 16, False, words), rotated(rows[:, :5].contiguous(), 16, False, words)
    torch.testing.assert_close(left.t() @ right, rows.t() @ rows[:, :5], rtol=1e-5, atol=1e-5)
    for last in (True, False):
        back = unrotated(rotated(a, 16, last, words), a.shape, 16, last, words)
        torch.testing.assert_close(back, a, rtol=1e-5, atol=1e-6)
    assert not torch.equal(turned, a)


def test_the_hadamard_matrix_is_sylvesters():
    matrix = np.ones((1, 1))
    for size in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        assert np.array_equal(hadamard(size).numpy(), (matrix / size**0.5).astype(np.float32))


def test_one_graph_after_another_traces_a_rotation():
    mode = Mode("nearest", "dynamic", "1x32", True, "1.0", hadamard=32)
    rest = spec_of(find_format("E2M1")), torch.zeros(0), torch.zeros(2, dtype=torch.int32), mode
    for rows in (8, 12):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        torch._dynamo.reset()
        traced = torch.compile(lambda x: round_site(x, *rest)[0], backend="aot_eager", dynamic=False)
        assert torch.equal(traced(x), round_site(x, *rest)[0])


def test_redrawn_signs_differ_from_key_to_key():
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    first, second = (rotated(x, 16, True, torch.tensor([seed, 1], dtype=torch.int32)) for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_any_floating_tensor_comes_back_in_its_own_dtype_with_the_gradient_passed_through(dtype):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    y = fake_quantize(x, "E4M3")
    assert y.dtype == dtype and y.shape == x.shape
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_clipped_gradient_is_zero_where_values_lie_beyond_the_largest_under_their_scale():
    x = torch.tensor([1.0, 500.0, -449.0, 448.0], requires_grad=True)
    fake_quantize(x, Cast(format="E4M3", scaling="none"), straight_through="clipped").sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_static_scale_is_the_one_given():
    x = torch.tensor([1.0, 3.0, 1000.0])
    rounded = fake_quantize(x, Cast(format="E4M3", scaling="static", static_scale=0.5))
    assert rounded.tolist() == [1.0, 3.0, 224.0]  # 448 x 0.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block": "32x"}, "tensor, row, or AxB"),
        ({"block": "0x4"}, "tensor, row, or AxB"),
        ({"scale_rule": "real"}, "powers of two only"),
        ({"scale_format": "E4M3"}, "use scale_rule='real'"),
        ({"scale_format": "E4M3", "scale_rule": "real"}, "such as block='1x16'"),
        ({"block": "1x32", "scaling": "delayed"}, "have no history"),
        ({"hadamard": 12}, "a power of two"),
        ({"format": "E4M9x"}, "format="),
        ({"overflow": "inf"}, "no infinity"),
    ],
)
def test_a_cast_that_contradicts_itself_is_refused_in_words(fields, words):
    with pytest.raises(ValueError, match=words):
        Cast(**({"format": "E4M3"} | fields))


def test_a_number_is_a_tile_of_its_own():
    x = torch.tensor(3.3, requires_grad=True)
    for cast in ("E4M3", Cast(format="E4M3", block="1x32"), Cast(format="E4M3", block="128x128")):
        y = fake_quantize(x, cast, "first")
        assert y.shape == () and y.item() == 3.25
    y.backward()
    assert x.grad.item() == 1.0


@pytest.mark.parametrize(("fmt", "scale"), [("E4M3", 1e40), ("E5M2", 1e38), ("E4M3", 1e-39)])
def test_a_static_scale_beyond_float32_is_refused(fmt, scale):
    with pytest.raises(ValueError, match="so that scaled values stay in the range of float32"):
        Cast(format=fmt, scaling="static", static_scale=scale)


def test_fake_quantize_refuses_what_it_cannot_round():
    for x in (torch.arange(3), [1.0, 2.0]):
        with pytest.raises(TypeError, match="must be a floating tensor"):
            fake_quantize(x, "E4M3")
    with pytest.raises(TypeError, match="must be a Cast, or the name of a format"):
        fake_quantize(torch.ones(3), None)
    with pytest.raises(ValueError, match=r"^format='E4M3x'; known: .*did you mean 'E4M3'\?$"):
        fake_quantize(torch.ones(3), "E4M3x")
    with pytest.raises(ValueError, match="dimension='middle'; known: first, last"):
        fake_quantize(torch.ones(3), "E4M3", "middle")
    with pytest.raises(ValueError, match="straight_through='clip'; known: plain, clipped"):
        fake_quantize(torch.ones(3), "E4M3", straight_through="clip")
    with pytest.raises(ValueError, match="scaling='delayed'"):
        fake_quantize(torch.ones(3), Cast(format="E4M3", scaling="delayed"))
