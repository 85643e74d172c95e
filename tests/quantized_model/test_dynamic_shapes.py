"""torch.compile(model, dynamic=True): batches of any size and length give the gradients of the eager model."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model

RECIPES = {
    "nearest": Recipe(format="E4M3"),
    "delayed": Recipe(format="E4M3", scaling="delayed", amax_history=4),
    "stochastic": Recipe(format="E4M3", amax_factor=0.3, rounding="stochastic"),
    "blocks": Recipe(recipe="mxfp8"),
}
SIZES = ((6, 3), (10, 7))  # rows and sequence length


def gradients(recipe: Recipe, backend: str | None) -> list[Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    quantized = quantize_model(model, recipe)
    called = model if backend is None else torch.compile(model, dynamic=True, backend=backend)
    found = []
    for step, size in enumerate(SIZES, start=1):
        x = torch.randn(*size, 64, generator=torch.Generator().manual_seed(step)).requires_grad_()
        quantized.begin_step(0, step)
        model.zero_grad()
        called(x).square().sum().backward()
        quantized.after_optimizer()
        assert x.grad is not None
        found += [x.grad, *(one.grad.clone() for one in model.parameters() if one.grad is not None)]
    return found


@pytest.mark.compiled
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_batches_of_any_size_round_as_without_a_compiler(recipe: Recipe) -> None:
    for found, expected in zip(gradients(recipe, "aot_eager"), gradients(recipe, None), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.compiled
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
def test_so_does_inductor() -> None:
    """Sums within a product may have another order there."""
    recipe = RECIPES["delayed"]
    for found, expected in zip(gradients(recipe, "inductor"), gradients(recipe, None), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
