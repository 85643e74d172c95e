"""Published recipes through a whole layer (y, dx, dW), against torchao and against the formulas of their papers."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model

TOKENS, INTO, OUT = 160, 256, 192  # 160 and 192: tiles of 128 end with a shorter one
ULP = 2.0**-23
KINDS = {"E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2}
LARGEST = {name: np.float32(ml_dtypes.finfo(kind).max) for name, kind in KINDS.items()}


def draw(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Normal values whose rows and columns differ by several octaves, so that every shape of tile has its own scale."""
    source = torch.Generator().manual_seed(seed)
    x, *octaves = (torch.randn(shape, generator=source) for shape in ((rows, columns), (rows, 1), (1, columns)))
    return x * torch.exp2(2 * octaves[0]) * torch.exp2(2 * octaves[1])


class _Operands(TorchDispatchMode):
    """Notes both operands of each product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if operator is torch.ops.aten.mm.default:
            self.found.append(arguments)
        return operator(*arguments, **(keywords or {}))


def layer_of(weight: torch.Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data.copy_(weight)
    return model


def results(model: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """y, dx and dW of one forward and backward pass."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "dw": next(model.parameters()).grad.clone()}


def operands(model: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """(`results`, the six operands as the products of the layer saw them: x, W, dy, W, dy, x)."""
    with _Operands() as seen:
        found = results(model, x, dy)
    (x_y, w_y), (dy_dx, w_dx), (dy_dw, x_dw) = seen.found
    return found, [x_y, w_y.t(), dy_dx, w_dx, dy_dw.t(), x_dw]


def products(six: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """y, dx and dW of six operands, in float64."""
    x_y, w_y, dy_dx, w_dx, dy_dw, x_dw = (operand.double() for operand in six)
    return {"y": x_y @ w_y.t(), "dx": dy_dx @ w_dx, "dw": dy_dw.t() @ x_dw}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float) -> None:
    """One operand value on the other neighbour of its grid would be an error of 1e-4 and more."""
    for name, value in expected.items():
        assert float((found[name].double() - value.double()).norm() / value.double().norm()) <= within, name


@pytest.mark.parametrize(
    ("recipe", "theirs"),
    [
        ("torchao_tensorwise", "tensorwise"),
        ("torchao_rowwise", "rowwise"),
        ("torchao_rowwise_gw_hp", "rowwise_with_gw_hp"),
    ],
)
def test_y_dx_and_dw_are_those_of_torchaos_float8_training_layer(recipe: str, theirs: str) -> None:
    float8 = pytest.importorskip("torchao.float8")
    config = dataclasses.replace(float8.Float8LinearConfig.from_recipe_name(theirs), emulate=True)
    for seed in range(3):
        weight, x, dy = draw(OUT, INTO, seed), draw(TOKENS, INTO, 10 + seed), draw(TOKENS, OUT, 20 + seed)
        if theirs == "rowwise_with_gw_hp":  # its high precision is the dtype of the tensors, here BF16 by rounding
            x, dy = x.bfloat16().float(), dy.bfloat16().float()
        ours = layer_of(weight)
        quantize_model(ours, Recipe(recipe=recipe))
        found = results(ours, x, dy)
        expected = results(float8.convert_to_float8_training(layer_of(weight), config=config), x, dy)
        if theirs == "tensorwise":  # real scales: they divide by the scale, ours multiply by its inverse
            assert_close(found, expected, 2e-7)
        else:
            for name, value in expected.items():
                assert torch.equal(found[name], value), name


class _MxLinear(nn.Linear):
    """torchao's MXFP8 products, emulated."""

    def __init__(self, weight: torch.Tensor, rule: str, wgrad_high: bool) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight.data.copy_(weight)
        self._rule, self._wgrad_high = rule, wgrad_high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torchao.prototype.moe_training.mxfp8_linear import mx_mm
        from torchao.prototype.mx_formats import config
        from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

        kind, rule = torch.float8_e4m3fn, config.ScaleCalculationMode[self._rule]
        kernels = config.MXFP8Dim0CastKernelChoice.TORCH, config.MXFP8Dim1CastKernelChoice.TORCH
        how = (32, KernelPreference.EMULATED, *kernels, rule, self._wgrad_high)
        return mx_mm.apply(x, self.weight, kind, kind, kind, *how)


@pytest.mark.parametrize(
    ("recipe", "rule", "wgrad_high"),
    [("mxfp8", "RCEIL", False), ("mxfp8_floor", "FLOOR", False), ("mxfp8_wgrad_hp", "RCEIL", True)],
)
def test_y_dx_and_dw_are_those_of_torchaos_mx_training_layer(recipe: str, rule: str, wgrad_high: bool) -> None:
    pytest.importorskip("torchao.prototype.moe_training.mxfp8_linear")
    weight, x, dy = (
        draw(OUT, INTO, 1),
        draw(TOKENS, INTO, 2).bfloat16().float(),
        draw(TOKENS, OUT, 3).bfloat16().float(),
    )
    ours = layer_of(weight)
    quantize_model(ours, Recipe(recipe=recipe))
    found, expected = results(ours, x, dy), results(_MxLinear(weight, rule, wgrad_high), x, dy)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# (tokens or out per tile, values of the last dimension per tile) of the six operands: what a GEMM contracts is cut into
# 128, and so are both dimensions of a weight
DEEPSEEK = [(1, 128), (128, 128), (1, 128), (128, 128), (128, 1), (128, 1)]


def in_tiles(x: torch.Tensor, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(E4M3 codes of x 448 / amax, amax / 448 of each value's tile), both shaped like x; a loop over the tiles."""
    values, codes, scales = x.numpy(), np.empty(x.shape, KINDS["E4M3"]), np.empty(x.shape, np.float32)
    for top in range(0, x.shape[0], rows):
        for left in range(0, x.shape[1], columns):
            tile = np.s_[top : top + rows, left : left + columns]
            amax = np.abs(values[tile]).max()
            codes[tile] = np.minimum(np.maximum(values[tile] * (LARGEST["E4M3"] / amax), -448), 448)
            scales[tile] = amax / LARGEST["E4M3"]
    return codes, scales


def test_deepseeks_tiles_are_amax_over_448_along_what_each_gemm_contracts() -> None:
    weight, x, dy = draw(OUT, INTO, 1), draw(TOKENS, INTO, 2), draw(TOKENS, OUT, 3)
    model = layer_of(weight)
    quantize_model(model, Recipe(recipe="deepseek_v3", layer_formats={}))
    found, six = operands(model, x, dy)
    expected = []
    for ours, tensor, tile in zip(six, (x, weight, dy, weight, dy, x), DEEPSEEK, strict=True):
        codes, scales = in_tiles(tensor, *tile)
        assert np.array_equal((ours.numpy() / scales).astype(KINDS["E4M3"]), codes)
        values = torch.from_numpy(codes.astype(np.float32) * scales)
        assert ((ours - values).abs() <= 2 * ULP * values.abs()).all()  # amax / 448 against 1 / (448 / amax)
        expected.append(values)
    assert_close(found, products(expected), 1e-6)


class DelayedScale:
    """Transformer Engine's rule: scale = (max / amax) / 2^margin, of the largest amax of the steps before this one."""

    def __init__(self, name: str, margin: int, length: int) -> None:
        self._name, self._margin, self._length = name, margin, length
        self._amaxes: list[np.float32] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, largest = x.numpy(), LARGEST[self._name]
        own = np.abs(values).max()
        scale = largest / max(self._amaxes or [own]) / np.float32(2.0**self._margin)
        self._amaxes = [own, *self._amaxes][: self._length]
        codes = np.minimum(np.maximum(values * scale, -largest), largest).astype(KINDS[self._name])
        return torch.from_numpy(codes.astype(np.float32) * (1 / scale))


@pytest.mark.parametrize("margin", [0, 2])
def test_te_delayed_takes_the_scales_of_all_three_tensors_from_the_steps_before(margin: int) -> None:
    factor = {"amax_factor": 2.0**margin}
    of_weight = {"fprop": {"weight": factor}, "dgrad": {"weight": factor}}
    model = layer_of(draw(OUT, INTO, 1))
    quantized = quantize_model(model, Recipe(recipe="te_delayed", amax_history=3, gemms=of_weight, **factor))
    rules = {"x": DelayedScale("E4M3", margin, 3), "w": DelayedScale("E4M3", margin, 3)}
    rules["dy"] = DelayedScale("E5M2", margin, 3)
    saturated = []
    for step, octave in enumerate((0, 3, 1, -2, -4, -1, 2, -6)):
        x, dy = draw(TOKENS, INTO, 10 + step) * 2.0**octave, draw(TOKENS, OUT, 30 + step) * 2.0**-octave
        quantized.begin_step(seed=1, step=step)
        weight = model[0].weight.detach().clone()
        found, six = operands(model, x, dy)
        rounded = {name: rules[name](tensor) for name, tensor in (("x", x), ("w", weight), ("dy", dy))}
        for ours, name in zip(six, ("x", "w", "dy", "w", "dy", "x"), strict=True):
            assert torch.equal(ours, rounded[name]), (step, name)
        assert_close(found, products([rounded[name] for name in ("x", "w", "dy", "w", "dy", "x")]), 1e-6)
        saturated.append(bool((x.abs() > 1.07 * rounded["x"].abs().max()).any()))  # 480 would be 448 with a fresh scale
        with torch.no_grad():
            model[0].weight -= 2.0**octave * found["dw"] * weight.norm() / found["dw"].norm()
        quantized.after_optimizer()
    # the history decides and not the step's own amax
    assert saturated == [False, True, *[False] * 4, True, False]
