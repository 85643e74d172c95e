"""On a GPU: the CPU's bits, the CPU's training, the fast products against the plain ones, one wait per step."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.quantization.kernel.compiled import CompiledRounding
from altgrad.quantization.kernel.round import round_to_format, spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site
from altgrad.quantization.quantize import quantize_model
from altgrad.training.trainer import Trainer
from tests.references.layer_reference import draw, run
from tests.references.rounding_inputs import ALL, million

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here can be measured")

TINY = {"model": "tiny", "max_steps": 20, "eval_interval": 20, "diagnostic_interval": 20, "warmup_steps": 1}
MIXED = {"format": "E4M3", "gradient_format": "E5M2"}
CASTS = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2, "BF16": torch.bfloat16, "FP16": torch.float16}


def capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


fp8 = pytest.mark.skipif(capability() < (8, 9), reason="no FP8 tensor cores (compute capability 8.9)")


def bits(x: Tensor) -> Tensor:
    """A GPU has one NaN, a CPU keeps the payload."""
    return torch.where(torch.isnan(x), torch.nan, x).cpu().view(torch.int32)


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_rounding_is_that_of_the_cpu_bit_for_bit_eager_and_compiled(fmt, rounding):
    x = torch.from_numpy(million(fmt)[: 64 * 1024]).view(64, 1024)
    expected = round_to_format(x, fmt, rounding, torch.Generator().manual_seed(1))
    eager = round_to_format(x.cuda(), fmt, rounding, torch.Generator().manual_seed(1))
    compiled = CompiledRounding(fmt, rounding)(x.cuda(), torch.Generator().manual_seed(1))
    assert torch.equal(bits(eager), bits(expected)) and torch.equal(bits(compiled), bits(expected))


@pytest.mark.parametrize("name", CASTS)
def test_rounding_is_that_of_torchs_casts_on_the_device(name):
    fmt = FORMATS[name]
    x = torch.from_numpy(million(fmt)).cuda()
    x = x[torch.isfinite(x) & (x.abs() <= fmt.max)].reshape(1, -1)
    for rounded in (round_to_format(x, fmt), CompiledRounding(fmt)(x)):
        assert torch.equal(bits(rounded), bits(x.to(CASTS[name]).float()))


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "row", "1x32"])
def test_scales_and_counts_are_those_of_the_cpu(granularity, power_of_two):
    mode = Mode("nearest", "dynamic", granularity, power_of_two, "1.0")
    for fmt in FORMATS.values():
        x = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * 3
        x[0, :3] = torch.tensor([float("nan"), float("inf"), 0.0])
        expected, counts = round_site(x, spec_of(fmt), torch.zeros(0), torch.zeros(2, dtype=torch.int32), mode)
        ours, found = CompiledRounding(fmt, "nearest", granularity, power_of_two).with_counts(x.cuda())
        assert torch.equal(bits(ours), bits(expected)), fmt
        assert torch.equal(found.cpu(), counts), fmt


def losses(**fields) -> list[float]:
    trainer = Trainer(TrainConfig(**(TINY | {"compile": False} | fields)))
    return [trainer.step().record["loss"] for _ in range(20)]


@pytest.mark.parametrize("fields", [MIXED, {"format": "E7M0"}, {"format": "E3M4", "master_weights": False}], ids=str)
def test_training_is_close_to_that_of_the_cpu(fields):
    assert losses(**fields, device="cuda") == pytest.approx(losses(**fields, device="cpu"), rel=5e-3)


@pytest.mark.parametrize("compile_step", [False, True])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_training_in_bfloat16_products_is_that_in_float32_up_to_the_order_of_sums(compile_step, power_of_two):
    fields = MIXED | {"device": "cuda", "compile": compile_step, "scale_power_of_two": power_of_two}
    assert losses(**fields, gemm_dtype="bfloat16") == pytest.approx(losses(**fields, gemm_dtype="float32"), rel=2e-3)


def layer_of(recipe: Recipe, device: str = "cuda") -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 48))
    with torch.no_grad():
        model[0].weight.copy_(draw(48, 64, seed=1) / 16)
        model[0].bias.copy_(draw(48, seed=2))
    return quantize_model(model.to(device), recipe).layers["0"]


def results(**fields) -> list[Tensor]:
    return run(layer_of(Recipe(**MIXED, **fields)), draw(32, 64, seed=3).cuda(), draw(32, 48, seed=4).cuda())


def test_products_of_bfloat16_are_those_of_float32_where_sums_are_exact():
    """The operands have few bits within few octaves: every sum is exact whatever its order."""
    for ours, reference in zip(results(gemm_dtype="bfloat16"), results(gemm_dtype="float32"), strict=True):
        assert torch.equal(ours, reference)


def test_scaled_sums_of_codes_are_products_of_values_up_to_roundings_of_float32():
    ours, values = (results(gemm_dtype=dtype, scale_power_of_two=False) for dtype in ("bfloat16", "float32"))
    for found, reference in zip(ours, values, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-6 * reference.abs().max().item())


def test_auto_takes_bfloat16_where_tensor_cores_have_it():
    for recipe in (Recipe(format="E4M3"), Recipe(recipe="te_current"), Recipe(recipe="nvfp4")):
        assert layer_of(recipe).multiplies_bfloat16 == (capability() >= (8, 0))
    assert not layer_of(Recipe(format="FP16")).multiplies_bfloat16


@fp8
@pytest.mark.parametrize("fields", [{}, {"scale_power_of_two": False}], ids=str)
def test_the_native_path_gives_the_simulated_results_up_to_the_width_of_the_sums(fields):
    for ours, reference in zip(results(native_fp8=True, **fields), results(**fields), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-2, atol=1e-3 * reference.abs().max().item())


@fp8
def test_native_row_scales_are_those_of_the_cpus_native_path():
    recipe = Recipe(**MIXED, scale_granularity="row", native_fp8=True)
    expected = run(layer_of(recipe, "cpu"), draw(32, 64, seed=3), draw(32, 48, seed=4))
    for ours, reference in zip(results(scale_granularity="row", native_fp8=True), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), reference, rtol=1e-2, atol=1e-3 * reference.abs().max().item())


@fp8
@pytest.mark.parametrize("compile_step", [False, True])
def test_training_natively_has_the_losses_of_the_simulation(compile_step):
    fields = MIXED | {"device": "cuda", "compile": compile_step}
    assert losses(**fields, native_fp8=True) == pytest.approx(losses(**fields), rel=5e-3)


def test_cuda_graphs_train_as_the_compiled_step_does_with_every_diagnostic_on():
    fields = MIXED | {"device": "cuda", "compile": True, "use_shadow": True, "log_ulp": True, "diagnostic_interval": 5}
    assert losses(**fields, cuda_graphs=True) == pytest.approx(losses(**fields), rel=1e-5)


@contextlib.contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fields", [MIXED, {"format": "E3M4", "master_weights": False}], ids=str)
def test_a_step_waits_for_the_device_once(fields, monkeypatch):
    trainer = Trainer(TrainConfig(**TINY, **fields, compile=False, device="cuda"))
    for _ in range(3):
        trainer.step()
    reads = []
    to_list = Tensor.tolist

    def allowed(tensor: Tensor) -> list[float]:
        reads.append(tensor.shape)
        torch.cuda.set_sync_debug_mode("default")
        try:
            return to_list(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Tensor, "tolist", allowed)
    with waiting_is_an_error():
        trainer.step()
    assert len(reads) == 1
