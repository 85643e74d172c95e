"""A small model of quantised layers under a real AdamW, stepped and measured in the trainer's order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.diagnostics.protocol import DiagnosticSnapshot, LayerStep, MeasuredStep
from altgrad.diagnostics.suite import Diagnostics
from altgrad.quantization.quantize import quantize_model
from tests.references import slow_diagnostics as slow

EVERYTHING = {"log_stiffness": True, "log_grid_alignment": True, "log_ulp": True, "use_shadow": True}
DEAD_INPUT = 3  # an input that is always zero, with weights that are: no gradient, no update, no stiffness
DEAD_UNIT = 2  # a unit that never fires: weights without a gradient


def plain_model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 33), nn.LayerNorm(33), nn.Linear(33, 5))
    with torch.no_grad():
        model[0].weight[:, DEAD_INPUT] = 0.0
        model[0].bias[DEAD_UNIT] = -100.0
    return model


class Bench:
    """A small model with its optimizer, stepped and measured in the trainer's order."""

    def __init__(self, model: nn.Module | None = None, learning_rate: float = 3e-3, **fields: Any) -> None:
        self.config = TrainConfig(**(EVERYTHING | fields))
        self.model = plain_model() if model is None else model
        self.quantized = quantize_model(self.model, self.config)
        self.layers, self.write_back = self.quantized.layers, self.quantized.write_back
        corrections = None if self.write_back is None else self.write_back.corrections
        self.diagnostics = Diagnostics(self.config, self.model, self.layers, corrections)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
        self.number = 0

    def loss(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.number)
        x = torch.randn(24, 20, generator=generator)
        x[:, DEAD_INPUT] = 0.0
        target = torch.randint(5, (24,), generator=generator)
        return nn.functional.cross_entropy(self.model(x), target)

    def backward(self) -> None:
        self.number += 1
        self.quantized.begin_step(seed=7, step=self.number)
        self.optimizer.zero_grad()
        self.loss().backward()

    def before_step(self) -> None:
        self.diagnostics.before_step(MeasuredStep(self.number, self.layers, self.loss))

    def finish(self) -> list[LayerStep]:
        """Clip, move, write back."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        before = {
            name: (layer.weight.detach().clone(), *layer.rounded_weight_and_scale())
            for name, layer in self.layers.items()
        }
        self.optimizer.step()
        intended = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.quantized.after_optimizer()
        steps = []
        for name, layer in self.layers.items():
            weight, stored, scale, inverse = before[name]
            assert layer.weight.grad is not None
            steps.append(
                LayerStep(
                    name,
                    layer,
                    layer.weight.grad,
                    weight,
                    stored,
                    intended[name],
                    layer.rounded_weight_and_scale()[0],
                    scale,
                    inverse,
                )
            )
        return steps

    def step(self) -> list[LayerStep]:
        self.backward()
        return self.finish()

    def measured_step(self) -> tuple[list[LayerStep], DiagnosticSnapshot, list[Mapping[str, Any]]]:
        self.backward()
        self.before_step()
        steps = self.finish()
        return steps, *self.diagnostics.measure(self.number, steps)

    def slow(self, steps: list[LayerStep]) -> dict[str, slow.SlowStep]:
        granularity = None if self.config.scaling == "none" else self.config.scale_granularity
        return {
            step.name: slow.SlowStep(
                step.format,
                granularity,
                *(x.numpy().copy() for x in (step.weight_before, step.intended, step.gradient)),
                written=None if self.write_back is None else step.layer.weight.detach().numpy().copy(),
            )
            for step in steps
        }


def rows_of(snapshot: DiagnosticSnapshot) -> dict[str, Mapping[str, Any]]:
    assert all(row["site"] == "weight" and row["step"] == snapshot.step for row in snapshot.layers)
    return {row["layer"]: row for row in snapshot.layers}
