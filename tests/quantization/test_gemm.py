"""Products in bfloat16: the operands survive the cast, losses are those of float32, what is not exact is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad.config.cast import GEMMS, Cast
from altgrad.config.recipe import GEMM_SITES, Recipe
from altgrad.config.train_config import ConfigError, TrainConfig, make_config
from altgrad.format_relations import FALLBACKS
from altgrad.formats import FORMATS, NumberFormat, find_format
from altgrad.quantization.gemms import products as gemm
from altgrad.quantization.gemms.operand_gemms import summed_by_tiles
from altgrad.quantization.kernel.compiled import INDUCTOR_OPTIONS
from altgrad.quantization.kernel.round import FormatTensors, round_to_format
from altgrad.quantization.kernel.scale import scale_for
from altgrad.quantization.kernel.scaled_rounding import code_site, mode_of, round_site, spec_for
from altgrad.quantization.quantize import quantize_model
from altgrad.training.trainer import Trainer
from tests.references.layer_reference import IN, OUT, draw, layer_of, run
from tests.references.rounding_inputs import ALL
from tests.support.runs.small_runs import BARE

pytestmark = pytest.mark.long

EXACT = [fmt for fmt in FORMATS.values() if fmt.mantissa_bits <= 7]
EXACT_AND_ODD = [fmt for fmt in ALL if fmt.mantissa_bits <= 7]  # also at the edges of float32's range
# one of each kind; that each format's values survive is shown code by code
KINDS = {(fmt.specials, fmt.exponent_bits == 0, fmt.mantissa_bits == 0): fmt for fmt in EXACT}
INEXACT = [fmt for fmt in FORMATS.values() if fmt.mantissa_bits > 7]
SMALLEST_NORMAL, BFLOAT16_STEP = 2.0**-126, 2.0**-133  # of float32; of bfloat16's subnormals
BARE_ON_ONE_THREAD = BARE | {"threads": 1}
CPU = torch.device("cpu")
ALONG = {"scale_power_of_two": False, "gemms": {name: {"axis": "contraction"} for name in GEMMS}}  # rows, if any
SHORT = {"n_layer": 1, "max_steps": 8, "eval_interval": 8, "diagnostic_interval": 8}
FAST = SHORT | {"warmup_steps": 1, "learning_rate": 3e-3, "compile": False}


def there_and_back(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def scales(fmt: NumberFormat) -> list[float]:
    """All that the scale rule gives: from the scale of the smallest amax to that of the largest."""
    tensors = FormatTensors.of(fmt)
    ends = [scale_for(torch.tensor(amax), tensors, power_of_two=True)[0] for amax in (2.0**-149, 3.4028235e38)]
    low, high = (int(math.log2(end.item())) for end in ends)
    return [2.0**exponent for exponent in range(low, high + 1)]


@pytest.mark.parametrize("fmt", EXACT_AND_ODD, ids=str)
def test_every_code_times_every_scale_survives_the_cast_to_bfloat16_unless_float32_itself_is_subnormal_there(fmt):
    grid = torch.tensor([*fmt.magnitudes(), math.inf])
    grid = torch.cat([grid, -grid])
    found = scales(fmt)
    assert found == [1] if fmt.exponent_bits == 8 else len(found) > 100
    for scale in found:
        values = grid * scale
        same = there_and_back(values).view(torch.int32) == values.view(torch.int32)
        normal = values.abs() >= SMALLEST_NORMAL
        in_steps = values.abs() / BFLOAT16_STEP  # of a subnormal bfloat16: exact, a division by a power of two
        assert torch.equal(same, normal | (values == 0) | (in_steps == in_steps.floor())), scale
        assert ((there_and_back(values) - values).abs()[torch.isfinite(values)] <= BFLOAT16_STEP / 2).all()


@pytest.mark.parametrize("fmt", EXACT_AND_ODD, ids=str)
def test_values_that_are_normal_in_float32_never_round_to_what_bfloat16_lacks(fmt):
    """The neighbourhood of the smallest normal number, at all scales, in every rounding."""
    exponents = torch.arange(-126, -116, dtype=torch.float32).unsqueeze(1)
    x = (1 + torch.arange(0, 2**10) / 2**10) * torch.exp2(exponents)
    for scale in scales(fmt):
        for rounding in ("nearest", "toward_zero", "stochastic"):
            rounded = round_to_format(x * (1 / scale), fmt, rounding) * scale
            assert torch.equal(there_and_back(rounded), rounded), (scale, rounding)


def losses(**fields) -> list[float]:
    trainer = Trainer(TrainConfig(**(BARE_ON_ONE_THREAD | FAST | fields)))
    return [trainer.step().record["loss"] for _ in range(trainer.config.max_steps)]


@pytest.mark.parametrize(
    "fields",
    [
        *({"format": fmt.name} for fmt in KINDS.values()),
        {"format": "E4M3", "gradient_format": "E5M2", "master_weights": False, "update_rounding": "stochastic"},
        {"format": "E3M4", "scale_granularity": "block", "rounding": "stochastic"},
        {"format": "E4M3", "scaling": "delayed", "tied_head": True},
        {"format": "E2M5", "scaling": "none", "scale_power_of_two": False},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_losses_in_bfloat16_are_those_in_float32_bit_for_bit(fields):
    assert losses(**fields, gemm_dtype="bfloat16") == losses(**fields, gemm_dtype="float32")


def test_all_three_products_see_operands_in_bfloat16_and_keep_them_in_it(monkeypatch):
    seen = []
    product, wgrad = gemm.product, gemm.wgrad
    monkeypatch.setattr(gemm, "product", lambda a, b, *rest: seen.append((a.dtype, b.dtype)) or product(a, b, *rest))
    monkeypatch.setattr(gemm, "wgrad", lambda a, b: seen.append((a.dtype, b.dtype)) or wgrad(a, b))
    layer = layer_of(Recipe(format="E4M3", gemm_dtype="bfloat16"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(draw(6, IN, seed=3))
    y.sum().backward()
    assert seen == 2 * [(torch.bfloat16, torch.bfloat16)]  # no dx: the input wants none
    assert {t.dtype for t in kept if t.numel() in (6 * IN, OUT * IN)} == {torch.bfloat16}


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1,), ()], ids=str)
def test_gradients_are_those_of_the_float32_layer_for_any_shape(shape):
    x, dy = draw(*shape, IN, seed=3), draw(*shape, OUT, seed=4)
    ours, reference = (run(layer_of(Recipe(format="E4M3", gemm_dtype=kind)), x, dy) for kind in ("bfloat16", "float32"))
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


def test_a_sum_by_tiles_is_the_sum_whether_or_not_the_tiles_are_full():
    for rows in (96, 70, 3):
        x = torch.arange(rows * 5, dtype=torch.float32).view(rows, 5)  # small integers: exact in any order
        assert torch.equal(summed_by_tiles(x, "1x32"), x.sum(0))


@pytest.mark.parametrize("fmt", [*INEXACT, find_format("E2M13")], ids=str)
@pytest.mark.parametrize("site", ["weight_format", "activation_format", "gradient_format"])
def test_a_site_of_too_many_mantissa_bits_is_refused_in_one_line(fmt, site):
    with pytest.raises(ConfigError, match=rf"^c: gemm_dtype='bfloat16': {fmt} has \d+ mantissa bits[^\n]*$"):
        make_config({"format": "E4M3", site: fmt.name, "gemm_dtype": "bfloat16"}, "c")
    with pytest.raises(ConfigError, match=f"{fmt} has"):
        make_config({"format": "E4M3", "layer_formats": {"lm_head": fmt.name}, "gemm_dtype": "bfloat16"}, "c")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"scale_granularity": "1x32"}, "E4M3 under FP32 scales of 1x32"),
        ({"scale_granularity": "row"}, "E4M3 under FP32 scales of row"),
        (
            {"gemms": {name: {"block": "1x16", "scale_format": "E4M3"} for name in GEMMS}} | {"format": "E3M4"},
            "E3M4 under E4M3 scales",
        ),
        ({"format": "E7M0"}, r"E7M0 has codes from 2.1684e-19 to 1.84467e\+19"),
    ],
    ids=str,
)
def test_real_scales_that_cannot_leave_a_sum_are_refused(fields, why):
    real = {"format": "E4M3", "scale_power_of_two": False, "gemm_dtype": "bfloat16"}
    with pytest.raises(ConfigError, match=rf"^c: gemm_dtype='bfloat16': {why}[^\n]*$"):
        make_config(real | fields, "c")
    Recipe(**real | {"format": "BF16", "scale_granularity": "1x32"})


def test_a_fixed_scale_is_a_real_one_unless_it_is_a_power_of_two():
    assert Cast(format="E4M3", scaling="static", static_scale=0.25).scales_are_powers_of_two
    fixed = Cast(format="E4M3", scaling="static", static_scale=0.3)
    assert not fixed.scales_are_powers_of_two and mode_of(fixed, None).scale_leaves_the_sum


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_under_real_scales_codes_are_multiplied_and_the_sums_are_scaled_as_on_fp8_hardware(granularity):
    """Against products of codes in float64, with rows along what each GEMM contracts."""
    x, dy, mixed = draw(6, IN, seed=3), draw(6, OUT, seed=4), {"format": "E4M3", "gradient_format": "E5M2"}
    recipe = Recipe(**mixed, **ALONG, scale_granularity=granularity, gemm_dtype="bfloat16")
    layer = layer_of(recipe)
    y, dx, dw, _ = run(layer, x, dy)

    def rounded(values: torch.Tensor, fmt: str, contracted: int) -> tuple[torch.Tensor, torch.Tensor]:
        along = None if granularity == "tensor" else contracted
        amax = values.abs().amax() if along is None else values.abs().amax(along, keepdim=True)
        inverse = find_format(fmt).max / amax
        code = torch.float8_e4m3fn if fmt == "E4M3" else torch.float8_e5m2
        return (values * inverse).to(code).double(), 1 / inverse

    weight = layer.weight.detach()
    for ours, (a, scale_a), (b, scale_b), bias in (
        (y, rounded(x, "E4M3", 1), rounded(weight, "E4M3", 1), layer.bias.detach()),
        (dx, rounded(dy, "E5M2", 1), rounded(weight.t(), "E4M3", 1), 0),
        (dw, rounded(dy.t(), "E5M2", 1), rounded(x.t(), "E4M3", 1), 0),
    ):
        expected = (a @ b.t()) * scale_a.double() * scale_b.double().t() + bias
        torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.compiled
def test_a_compiled_layer_scales_its_sums_as_eager_code_does_and_counts_the_same():
    x, dy = draw(6, IN, seed=3) * 0.3, draw(6, OUT, seed=4) * 0.7
    recipe = Recipe(format="E4M3", gradient_format="E5M2", **ALONG, gemm_dtype="bfloat16")
    found = []
    for compiled in (False, True):
        layer = layer_of(recipe)
        if compiled:
            torch._dynamo.reset()
            layer.compile(dynamic=False, options=INDUCTOR_OPTIONS)
        found.append((run(layer, x, dy), [site.take_counts() for site in layer.sites.values()]))
    for eager, ours in zip(*(results for results, _ in found), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)
    for eager, ours in zip(*(counts for _, counts in found), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.parametrize("fmt", ["E2M1", "E3M2", "E2M3", "E4M3"])
def test_a_code_times_an_e4m3_scale_survives_the_cast_to_bfloat16(fmt):
    codes, scales = (torch.tensor(find_format(name).magnitudes()) for name in (fmt, "E4M3"))
    products = codes.unsqueeze(1) * scales
    assert torch.equal(there_and_back(products), products)


def test_of_two_level_scales_only_that_of_the_tensor_is_left_to_the_sum():
    cast = Cast(format="E2M1", block="1x16", scale_rule="real", scale_format="E4M3")
    x, mode, spec = draw(8, 64, seed=3) * 0.37, mode_of(cast, "last"), spec_for(cast, cast.number_format, 0, CPU)
    given = (spec, torch.zeros(0), torch.zeros(2, dtype=torch.int32), mode)
    codes, scale, counts = code_site(x, *given)
    values, expected = round_site(x, *given)
    assert scale.ndim == 0 and scale == x.abs().max() / np.float32(448 * 6)
    assert torch.equal(there_and_back(codes), codes) and torch.equal(counts, expected)
    torch.testing.assert_close(codes * scale, values, rtol=3e-7, atol=0)


def test_an_emergency_shift_to_codes_that_bfloat16_lacks_is_refused():
    fields = {"recipe": "nvfp4", "gemm_dtype": "bfloat16"}
    TrainConfig(**fields)
    with pytest.raises(ValueError, match=r"^gemm_dtype='bfloat16' with enable_emergency_shift=True: E3M4 under E4M3"):
        TrainConfig(**fields, enable_emergency_shift=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"recipe": "te_delayed"},
        {"recipe": "te_current", "tied_head": True},
        {"recipe": "torchao_tensorwise"},
        {"format": "E3M4", "scale_power_of_two": False, "rounding": "stochastic"},
        {"recipe": "int8_training"},
        {"recipe": "nvfp4"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_losses_of_scaled_sums_begin_as_those_of_products_of_values_and_stay_close(fields):
    ours, values = losses(**fields, gemm_dtype="bfloat16"), losses(**fields, gemm_dtype="float32")
    assert ours[0] == pytest.approx(values[0], rel=1e-6)
    assert ours == pytest.approx(values, rel=5e-3)  # a last bit decides on which side of a tie a value lies


def test_auto_multiplies_bfloat16_on_a_gpu_exactly_in_the_layers_where_that_is_exact(monkeypatch):
    recipe = Recipe(format="E4M3", layer_formats={"1": "FP16"})
    assert not any(layer.multiplies_bfloat16 for layer in quantize_model(two_layers(), recipe).layers.values())
    monkeypatch.setattr(gemm, "bfloat16_pays", lambda device: True)
    layers = quantize_model(two_layers(), recipe).layers
    assert [layer.multiplies_bfloat16 for layer in layers.values()] == [True, False]
    real = Recipe(format="E4M3", scale_power_of_two=False)
    assert all(layer.multiplies_bfloat16 for layer in quantize_model(two_layers(), real).layers.values())
    in_tiles = quantize_model(two_layers(), Recipe(format="E4M3", scale_power_of_two=False, scale_granularity="1x32"))
    assert not any(layer.multiplies_bfloat16 for layer in in_tiles.layers.values())
    unscaled = quantize_model(two_layers(), Recipe(format="E4M3", scale_power_of_two=False, scaling="none")).layers
    assert all(layer.multiplies_bfloat16 for layer in unscaled.values())  # what is not scaled has no bits of a scale


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))


def test_no_emergency_shift_leads_to_a_format_that_bfloat16_lacks():
    assert all(Cast().bfloat16_obstacle(FORMATS[name]) is None for pair in FALLBACKS.items() for name in pair)


def test_a_layer_that_changes_to_a_wide_format_multiplies_float32_or_refuses(monkeypatch):
    monkeypatch.setattr(gemm, "bfloat16_pays", lambda device: True)
    layer = quantize_model(two_layers(), Recipe(format="E4M3")).layers["0"]
    layer.set_format("weight", FORMATS["FP16"])
    assert not layer.multiplies_bfloat16
    layer.set_format("weight", FORMATS["E5M2"])
    assert layer.multiplies_bfloat16
    asked = quantize_model(two_layers(), Recipe(format="E4M3", gemm_dtype="bfloat16")).layers["0"]
    with pytest.raises(ValueError, match=r"^gemm_dtype='bfloat16': FP16 has 10 mantissa bits[^\n]*$"):
        asked.set_format("weight", FORMATS["FP16"])
    assert asked.format_of("weight").name == "E4M3"


def test_a_compiled_graph_serves_all_exact_formats_and_another_one_those_that_are_not(monkeypatch):
    monkeypatch.setattr(gemm, "bfloat16_pays", lambda device: True)
    layer = quantize_model(two_layers(), Recipe(format="E4M3")).layers["0"]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, backend=counter, dynamic=False, fullgraph=True)
    for name, graphs in (("E4M3", 1), ("E7M0", 1), ("BF16", 1), ("FP16", 2), ("FP32", 2), ("E5M2", 2)):
        layer.set_format("weight", FORMATS[name])
        compiled(draw(6, 16, seed=3))
        for site in GEMM_SITES:
            layer.site(site).take_counts()
        assert counter.frame_count == graphs, name
