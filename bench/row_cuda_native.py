"""On a GPU: forward and backward of an MLP of a 1B-parameter GPT on FP8 tensor cores, rounding included."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from altgrad.quantization.compiled import INDUCTOR_OPTIONS
from altgrad.quantization.layers import quantize_model
from altgrad.training.recipe import Recipe
from bench.harness import NotMeasured, Row, cuda_device, cuda_ratio

_TOKENS, _WIDTH = 16384, 2048


def _measure(pairs: int) -> float:
    device = cuda_device()
    x = torch.randn(_TOKENS, _WIDTH, device=device, dtype=torch.bfloat16)
    native, plain = _mlp(device), _mlp(device)
    try:
        quantize_model(native, Recipe(format="E4M3", gradient_format="E5M2", native_fp8=True), counting=False)
    except ValueError as obstacle:
        raise NotMeasured(str(obstacle)) from obstacle
    return cuda_ratio(_pass(native, x), _pass(plain.bfloat16(), x), pairs)


def _mlp(device: torch.device) -> nn.Module:
    return nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)).to(device)


def _pass(model: nn.Module, x: Tensor) -> Callable[[], object]:
    compiled = torch.compile(model, dynamic=False, options=INDUCTOR_OPTIONS)
    x = x.clone().requires_grad_()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        compiled(x).backward(x.detach())

    return run


ROW = Row("GPU: MLP of a 1B model, FP8 tensor cores (x BF16)", 0.99, _measure, pairs=11)
