"""The native FP8 path on the CPU's `torch._scaled_mm`: the simulated numbers, and refusals that say what is wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad.config.recipe import GEMM_SITES, Recipe
from altgrad.config.train_config import ConfigError, TrainConfig, make_config
from altgrad.formats import FORMATS, find_format
from altgrad.quantization.gemms import native_fp8 as native
from altgrad.quantization.kernel.round import round_to_format, spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site
from altgrad.quantization.quantize import quantize_model
from altgrad.training.trainer import Trainer
from tests.references.layer_reference import run
from tests.support.runs.small_runs import BARE

IN, OUT, TOKENS = 32, 48, 64
MIXED = {"format": "E4M3", "gradient_format": "E5M2"}
FAST = {"warmup_steps": 1, "learning_rate": 3e-3, "compile": False, "threads": 1}


def layer_of(recipe: Recipe) -> nn.Module:
    torch.manual_seed(1)
    return quantize_model(nn.Sequential(nn.Linear(IN, OUT)), recipe).layers["0"]


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    """x and dy, with rows of very different magnitude, and what is neither finite nor normal."""
    source = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.arange(TOKENS) % 9 - 4).unsqueeze(1)
    return torch.randn(TOKENS, IN, generator=source) * sizes, 1e-4 * torch.randn(TOKENS, OUT, generator=source) * sizes


@pytest.mark.parametrize("name", native.FLOAT8)
def test_the_cast_of_a_value_on_the_grid_to_float8_is_that_value(name):
    fmt, dtype = find_format(name), native.FLOAT8[name]
    grid = torch.tensor([*fmt.magnitudes(), *([float("inf")] if fmt.has_inf else [])])
    grid = torch.cat([grid, -grid])
    assert torch.equal(grid.to(dtype).float().view(torch.int32), grid.view(torch.int32))
    wild = torch.cat([torch.randn(2**16) * 2.0**e for e in range(-20, 20)])
    for rounding in ("nearest", "toward_zero", "stochastic"):
        rounded = round_to_format(wild, fmt, rounding)
        assert torch.equal(rounded.to(dtype).float(), rounded)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scale_power_of_two": False},
        {"scaling": "none"},
        {"scaling": "delayed"},
        {"rounding": "stochastic"},
        {"amax_factor": 0.25},
        {"weight_format": "E5M2", "gradient_format": "E4M3"},
        {"overflow": "saturate"},
    ],
    ids=str,
)
def test_one_scale_per_tensor_gives_the_simulated_result_and_counts(fields):
    x, dy = operands()
    simulated, ours = (layer_of(Recipe(**(MIXED | fields), native_fp8=fp8)) for fp8 in (False, True))
    for a, b in zip(run(ours, x, dy), run(simulated, x, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())
    for site in GEMM_SITES:
        assert torch.equal(ours.site(site).take_counts(), simulated.site(site).take_counts())


@pytest.mark.parametrize("power_of_two", [True, False])
def test_row_scales_lie_along_what_each_product_contracts(power_of_two):
    x, dy = operands()
    recipe = Recipe(**MIXED, scale_granularity="row", scale_power_of_two=power_of_two, native_fp8=True)
    layer = layer_of(recipe)
    y, dx, dw, db = run(layer, x, dy)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    by_hand = (
        rounded(x, "E4M3", power_of_two) @ rounded(weight, "E4M3", power_of_two).t() + bias.double(),
        rounded(dy, "E5M2", power_of_two) @ rounded(weight.t(), "E4M3", power_of_two).t(),
        rounded(dy.t(), "E5M2", power_of_two) @ rounded(x.t(), "E4M3", power_of_two).t(),
        dy.double().sum(0),
    )
    for ours, reference in zip((y, dx, dw, db), by_hand, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6 * reference.abs().max().item())
    simulated = layer_of(recipe.model_copy(update={"native_fp8": False}))
    torch.testing.assert_close(run(simulated, x, dy)[0], y, rtol=1e-5, atol=1e-4)


def rounded(x: torch.Tensor, name: str, power_of_two: bool) -> torch.Tensor:
    """Dequantised, one scale per row of the tensor as given (float64)."""
    mode = Mode("nearest", "dynamic", "row", power_of_two, "1.0")
    key = torch.zeros(2, dtype=torch.int32)
    return round_site(x.contiguous(), spec_of(FORMATS[name]), torch.zeros(0), key, mode)[0].double()


@pytest.mark.parametrize("fields", [{}, {"scale_power_of_two": False}, {"master_weights": False}], ids=str)
def test_training_natively_has_the_losses_of_the_simulation(fields):
    """Each step begins alike: sums in another order, left to themselves, grow by values rounded the other way."""
    config = TrainConfig(**(BARE | FAST | MIXED | fields))
    simulated, native = Trainer(config), Trainer(config.altered(native_fp8=True))
    for _ in range(20):
        native.load_state_dict(copy.deepcopy(simulated.state_dict()))
        assert native.step().record["loss"] == pytest.approx(simulated.step().record["loss"], rel=1e-5)


def test_nan_in_the_input_reaches_the_output_and_infinity_saturates():
    layer = layer_of(Recipe(**MIXED, native_fp8=True))
    x, _ = operands()
    x[0, 0], x[1, 0] = float("nan"), float("inf")
    with torch.no_grad():
        y = layer(x)
    assert torch.isnan(y[0]).all() and torch.isfinite(y[1:]).all()


def test_operands_are_kept_as_codes_of_one_byte():
    layer = layer_of(Recipe(**MIXED, native_fp8=True))
    x, _ = operands()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert sorted(t.itemsize for t in kept if t.numel() >= IN * OUT) == [1, 1]


@pytest.mark.compiled
def test_a_compiler_traces_the_native_step_as_it_runs_eagerly():
    x, dy = operands()
    layer = layer_of(Recipe(**MIXED, native_fp8=True))
    eager = run(layer, x, dy)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    x = x.clone().requires_grad_()
    layer.zero_grad()
    compiled(x).backward(dy)
    for a, b in zip((x.grad, layer.weight.grad, layer.bias.grad), eager[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.compiled
@pytest.mark.parametrize("fields", [{"native_fp8": True}, {"gemm_dtype": "bfloat16"}], ids=str)
def test_layers_of_one_shape_share_a_graph(fields):
    model = nn.Sequential(*(nn.Linear(IN, IN) for _ in range(3)))
    layers = quantize_model(model, Recipe(**MIXED, **fields)).layers.values()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    for layer in layers:
        torch.compile(layer.forward, backend=counter, dynamic=False, fullgraph=True)(torch.randn(TOKENS, IN))
    assert counter.frame_count == 1


REFUSED = [
    ({"format": "E3M4"}, "E3M4 at a site"),
    ({"format": "E4M3", "layer_formats": {"lm_head": "BF16"}}, "BF16 at a site"),
    ({"format": "E5M2"}, "E5M2 by E5M2"),
    ({"format": "E4M3", "layer_formats": {"lm_head": "E5M2"}}, "E5M2 by E5M2"),
    ({**MIXED, "scale_granularity": "block"}, "scale_granularity='block'"),
    ({**MIXED, "scale_granularity": "row", "master_weights": False}, "scale_granularity='row'"),
    ({**MIXED, "gemm_dtype": "bfloat16"}, "gemm_dtype='bfloat16'"),
    ({**MIXED, "enable_emergency_shift": True}, "enable_emergency_shift"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_fp8_tensor_cores_cannot_do_is_refused_in_one_line(fields, said):
    with pytest.raises(ConfigError, match=r"^c: native_fp8=True[^\n]*$") as caught:
        make_config(fields | {"native_fp8": True}, "c")
    assert said in str(caught.value)


def test_an_odd_shape_is_refused_with_its_layer():
    model = nn.Sequential(nn.Linear(32, 65))
    with pytest.raises(ValueError, match=r"^native_fp8=True: layer 0 has a weight of shape \(65, 32\);[^\n]*16$"):
        quantize_model(model, Recipe(**MIXED, native_fp8=True))


def test_an_odd_number_of_tokens_is_refused_where_it_is_contracted():
    layer = layer_of(Recipe(**MIXED, native_fp8=True))
    with pytest.raises(ValueError, match=r"^native_fp8=True: layer 0 gets an input of shape \(3, 5, 32\)[^\n]*16$"):
        layer(torch.randn(3, 5, IN))
    with torch.no_grad():
        assert layer(torch.randn(3, 5, IN)).shape == (3, 5, OUT)


def test_a_gpu_without_fp8_tensor_cores_is_refused_with_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    sites = [layer_of(Recipe(**MIXED, native_fp8=True)).site(site) for site in GEMM_SITES]

    class OnGPU(torch.Tensor):
        device = torch.device("cuda:7")

    with pytest.raises(ValueError, match=r"^native_fp8=True: Some GPU has compute capability 8.0; [^\n]*$"):
        native.check_native("h.0", torch.zeros(32, 32).as_subclass(OnGPU), sites)


def test_a_device_that_cannot_multiply_says_so_in_its_own_words(monkeypatch):
    def scaled_mm(*arguments, **keywords):
        raise RuntimeError("no such kernel\nand a stack trace")

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    native._obstacle.cache_clear()
    with pytest.raises(ValueError, match=r"^native_fp8=True: cpu does not multiply [^\n]*\(no such kernel\)[^\n]*$"):
        layer_of(Recipe(**MIXED, native_fp8=True))
    native._obstacle.cache_clear()


def test_a_site_cannot_change_its_format_at_run_time():
    layer = layer_of(Recipe(**MIXED, native_fp8=True))
    layer.restore_formats(layer.format_names())
    with pytest.raises(ValueError, match=r"^native_fp8=True: a site cannot change from E4M3 to E5M2"):
        layer.set_format("weight", FORMATS["E5M2"])
