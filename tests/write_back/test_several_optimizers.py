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
