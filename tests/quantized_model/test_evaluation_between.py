"""An evaluation between a forward pass and its backward pass changes no number of the step, whatever its mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel

STOCHASTIC = Recipe(format="E4M3", rounding="stochastic")
MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def batch(seed: int) -> Tensor:
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))


def gradients(recompute: bool | None, evaluate: Callable[[nn.Module, QuantizedModel], None]) -> list[Tensor]:
    """Gradients of a step; recompute: by a checkpoint, reentrant if true; None: none."""
    model = small()
    quantized = quantize_model(model, STOCHASTIC)
    quantized.begin_step(7, 3)
    x = batch(1).requires_grad_()
    y = model(x) if recompute is None else checkpoint(model, x, use_reentrant=recompute)
    evaluate(model, quantized)
    y.square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@MODES
@pytest.mark.parametrize("recompute", [None, False, True])
@pytest.mark.parametrize("batches", [1, 2])
def test_an_evaluation_before_backward_changes_no_gradient(
    mode: Callable[[], AbstractContextManager[object]], recompute: bool | None, batches: int
) -> None:
    outputs = []

    def evaluate(model: nn.Module, quantized: QuantizedModel) -> None:
        with mode():
            for number in range(batches):
                quantized.begin_validation(7, 3, number)
                outputs.append(model(batch(2)).clone())

    plain = gradients(None, lambda model, quantized: None)
    assert len(plain) == 4
    for found, wanted in zip(gradients(recompute, evaluate), plain, strict=True):
        assert torch.equal(found, wanted)
    assert batches == 1 or not torch.equal(*outputs), "each held-out batch has numbers of its own"


@MODES
@pytest.mark.parametrize("recipe", [
    STOCHASTIC, Recipe(format="E4M3", scaling="delayed"),
    Recipe(format="E4M3", master_weights=False, update_rounding="kahan"),
], ids=["stochastic", "delayed", "stored"])  # fmt: skip
def test_a_model_made_or_evaluated_in_any_mode_trains_as_one_that_was_not(
    mode: Callable[[], AbstractContextManager[object]], recipe: Recipe
) -> None:
    def trained(made_within: bool, evaluated: bool) -> Tensor:
        model = small()
        if made_within:
            with mode():
                quantized = quantize_model(model, recipe)
        else:
            quantized = quantize_model(model, recipe)
        if evaluated:
            with mode():
                quantized.begin_validation(0, 0, 0)
                model(batch(2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(1, 3):
            optimizer.zero_grad()
            quantized.begin_step(0, step)
            model(batch(1)).square().sum().backward()
            optimizer.step()
            quantized.after_optimizer(optimizer)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    plain = trained(False, False)
    assert torch.equal(trained(True, False), plain)
    assert torch.equal(trained(False, True), plain)
