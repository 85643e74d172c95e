"""Rows of kernels: rounding a tensor relative to copying it, on the CPU and on a GPU; FP8 tensor cores against BF16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.formats import find_format
from altgrad.quantization.kernel.compiled import CompiledRounding, inductor_options
from altgrad.quantization.quantize import quantize_model
from bench.harness import NotMeasured, cuda_device, cuda_ratio, ratio, threads

SIZE = 2**24
_SHAPE = (4096, SIZE // 4096)
_GPU_SHAPE = (32768, 4096)  # 512 MiB: ten times the largest cache
_TOKENS, _WIDTH = 16384, 2048


def against_clone(number_of_threads: int = 1, counting: bool = False, **options: Any) -> Callable[[int], list[float]]:
    """A row's measurement: rounding 2^24 normal float32 values to E4M3, divided by the time of `torch.clone`."""

    def measure(pairs: int) -> list[float]:
        x = torch.randn(_SHAPE)
        rounding = CompiledRounding(find_format("E4M3"), **options)
        round_with: Callable[[Tensor], object] = rounding.with_counts if counting else rounding
        with threads(number_of_threads):
            return ratio(lambda: round_with(x), x.clone, pairs)

    return measure


def gpu_round_against_clone(pairs: int) -> list[float]:
    """Time of rounding divided by the time of a copy; a ratio of 1.18 is 85 % of the copy's bandwidth."""
    x, rounding = torch.randn(_GPU_SHAPE, device=cuda_device()), CompiledRounding(find_format("E4M3"))
    return cuda_ratio(lambda: rounding(x), x.clone, pairs)


def native_mlp_against_bfloat16(pairs: int) -> list[float]:
    """The row of `native_against_bfloat16` at the sizes of a 1B-parameter GPT."""
    return native_against_bfloat16(cuda_device(), _TOKENS, _WIDTH, pairs)


def native_against_bfloat16(device: torch.device, tokens: int, width: int, pairs: int) -> list[float]:
    """Forward and backward of an MLP: FP8 products with rounding, divided by BF16.  Raises NotMeasured without FP8."""
    x = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    native, plain = _mlp(device, width), _mlp(device, width)
    try:
        quantize_model(native, Recipe(format="E4M3", gradient_format="E5M2", native_fp8=True), counting=False)
    except ValueError as obstacle:
        raise NotMeasured(str(obstacle)) from obstacle
    return (cuda_ratio if device.type == "cuda" else ratio)(_pass(native, x), _pass(plain.bfloat16(), x), pairs)


def _mlp(device: torch.device, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)).to(device)


def _pass(model: nn.Module, x: Tensor) -> Callable[[], object]:
    compiled = torch.compile(model, dynamic=False, options=inductor_options(x.device))
    x = x.clone().requires_grad_()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        compiled(x).backward(x.detach())

    return run
