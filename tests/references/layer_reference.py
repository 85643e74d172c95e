"""A small quantised layer and its three GEMMs by hand: rounded with the oracles, multiplied in float64.

With operands of few bits within two octaves every product and sum is exact in float32 too, so that results can be
compared bit for bit whatever the order of summation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.quantize import quantize_model
from tests.references.oracles import quantise_by_hand

IN, OUT = 24, 10


def draw(*shape: int, seed: int) -> torch.Tensor:
    """Random signs, magnitudes from 1/2 to 2 in steps of 2^-6: sums of products of rounded values are exact."""
    source = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(32, 129, shape, generator=source) / 64
    return magnitude * (2 * torch.randint(0, 2, shape, generator=source) - 1)


def layer_of(recipe: Recipe, *, bias: bool = True) -> QuantizedLinear:
    model = nn.Sequential(nn.Linear(IN, OUT, bias=bias))
    with torch.no_grad():
        model[0].weight.copy_(draw(OUT, IN, seed=1) / 16)
        if bias:
            model[0].bias.copy_(draw(OUT, seed=2))
    return quantize_model(model, recipe).layers["0"]


def run(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """[y, dx, dW, db]"""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def by_hand(layer: QuantizedLinear, x: torch.Tensor, dy: torch.Tensor, **how) -> tuple[list[np.ndarray], dict]:
    """[y, dx, dW, db] and the counts of each site, from the formats alone."""
    operands = {"activation": x, "weight": layer.weight.detach(), "gradient": dy}
    rounded, counts = {}, {}
    for site, operand in operands.items():
        rounded[site], counts[site] = quantise_by_hand(operand.numpy(), layer.format_of(site), **how)
    a, w, g = (rounded[site].astype(np.float64) for site in ("activation", "weight", "gradient"))
    bias = 0 if layer.bias is None else layer.bias.detach().numpy().astype(np.float64)
    y = np.einsum("...i,oi->...o", a, w) + bias
    dx = np.einsum("...o,oi->...i", g, w)
    dw = np.einsum("ro,ri->oi", g.reshape(-1, OUT), a.reshape(-1, IN))
    db = [] if layer.bias is None else [dy.numpy().astype(np.float64).reshape(-1, OUT).sum(0)]
    return [y, dx, dw, *db], counts
