"""What the layers of a model draw when they round stochastically: which values of their operands went up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.quantization.gemms import products
from altgrad.quantization.quantize import quantize_model

SIZE = 64  # of every dimension: an operand is a matrix of 64 x 64
HALFWAY = 1.0625  # between 1 and 1.125 in E4M3
OPERANDS = {
    "product": ("fprop.activation", "fprop.weight"),
    "dgrad": ("dgrad.gradient", "dgrad.weight"),
    "wgrad": ("wgrad.gradient", "wgrad.activation"),
}
Source = tuple[int, int, int, int, str]  # rank, step, micro-batch, layer, operand


class TwoLayers(nn.Module):
    """Two layers of equal weights on one input, so that nothing but their random numbers differs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(2))
        for layer in self.layers:
            nn.init.constant_(layer.weight, HALFWAY)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        return first(x) + second(x)


def drawn_bits(rank: int, **fields: Any) -> dict[Source, Tensor]:
    """Source -> the values that were rounded up, (SIZE, SIZE) bool, for two steps of two micro-batches each.

    fields: of a recipe in which each GEMM rounds its operands by itself.
    """
    recipe = Recipe(format="E4M3", rounding="stochastic", **fields)
    quantized = quantize_model(TwoLayers(), recipe)
    quantized.share()
    found: dict[Source, Tensor] = {}
    for step in (1, 2):
        for micro_batch in (0, 1):
            with _operands() as seen:
                quantized.begin_step(7, step, micro_batch, rank)
                x = torch.full((SIZE, SIZE), HALFWAY, requires_grad=True)
                (quantized.model(x) * HALFWAY).sum().backward()
            for name, calls in seen.items():
                for layer, pair in enumerate(calls):
                    for operand, values in zip(OPERANDS[name], pair, strict=True):
                        assert set(values.unique().tolist()) == {1.0, 1.125}
                        found[rank, step, micro_batch, layer, operand] = values > HALFWAY
    return found


@contextmanager
def _operands() -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Records the operands of all products of the layers, by the function that multiplies them, in order of calls."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in OPERANDS}
    real = {name: getattr(products, name) for name in OPERANDS}

    def recording(name: str) -> Any:
        def recorded(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
            seen[name].append((a.detach().clone(), b.detach().clone()))
            product: Tensor = real[name](a, b, *rest)
            return product

        return recorded

    for name in OPERANDS:
        setattr(products, name, recording(name))
    try:
        yield seen
    finally:
        for name, function in real.items():
            setattr(products, name, function)


def largest_correlation(sources: list[Tensor]) -> float:
    """The largest |correlation| of two of n bit matrices, in standard errors; by chance about sqrt(2 ln(n^2 / 2))."""
    signs = torch.stack([source.flatten() for source in sources]).double() * 2 - 1
    scores = signs @ signs.T / signs.shape[1] ** 0.5
    return float(scores.fill_diagonal_(0).abs().max())
