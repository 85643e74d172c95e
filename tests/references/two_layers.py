"""A model of two linear layers and inputs for it, the same in every call."""

from __future__ import annotations

import torch
from torch import nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel

IN, OUT = 24, 10


def plain() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(IN, 16), nn.ReLU(), nn.Linear(16, OUT)).float()


def rounded(fmt: str = "E4M3", **fields) -> QuantizedModel:
    return quantize_model(plain(), Recipe(format=fmt, scaling="none", **fields))


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float32, device="cpu")
