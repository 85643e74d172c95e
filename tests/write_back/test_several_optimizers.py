"""Weights without masters that several optimizers move: each rounding error reaches the optimizer of its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model


@pytest.mark.parametrize("rule", ["eco", "eco_stochastic", "kahan", "nearest"])
def test_of_several_optimizers_each_gets_the_errors_of_its_weights_whenever_the_call_comes(rule: str) -> None:
    """Both optimizers step before the first `after_optimizer`, or each is followed by its own call."""

    def trained(at_once: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False))
        quantized = quantize_model(model, Recipe(format="E4M3", master_weights=False, update_rounding=rule))
        optimizers = [
            torch.optim.SGD(model[0].parameters(), lr=0.01, momentum=0.9),
            torch.optim.AdamW(model[1].parameters(), lr=0.01),
        ]
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
        for step in range(1, 5):
            quantized.begin_step(3, step)
            model.zero_grad()
            model(x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                if not at_once:
                    quantized.after_optimizer(optimizer)
            for optimizer in optimizers if at_once else []:
                quantized.after_optimizer(optimizer)
        weights = [model[0].weight, model[1].weight]
        moments = [optimizers[0].state[weights[0]]["momentum_buffer"], optimizers[1].state[weights[1]]["exp_avg"]]
        return [*(weight.detach() for weight in weights), *moments]

    for found, wanted in zip(trained(True), trained(False), strict=True):
        assert torch.equal(found, wanted)


def test_moments_of_two_optimizers_draw_independent_numbers() -> None:
    """Equal moments at the same place of two optimizers: their rounding errors are not the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    moment = {"format": "E4M3", "rounding": "stochastic"}
    quantized = quantize_model(model, Recipe(format="E4M3", first_moment=moment))
    gradient = torch.randn(64, 64)

    def errors(step: int) -> list[Tensor]:
        found = []
        quantized.begin_step(5, step)
        for layer in model:
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
            layer.weight.grad = gradient.clone()
            optimizer.step()
            quantized.after_optimizer(optimizer)
            found.append(optimizer.state[layer.weight]["momentum_buffer"] - gradient)
        return found

    first, second = errors(1)
    alike = (first == second).double().mean().item()  # p^2 + (1 - p)^2 for a value a share p of a ULP above the grid
    assert alike == pytest.approx(2 / 3, abs=0.05)
    again, other = errors(1), errors(2)
    assert torch.equal(again[0], first) and torch.equal(again[1], second) and not torch.equal(other[0], first)
