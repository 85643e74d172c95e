"""Parts of a model that are compiled by themselves, because a deep model repeats one block.

Compiling a whole step costs seconds per layer, compiling its block once costs the same whatever the depth: blocks of
one shape differ in data alone (weights, formats, salts), so one graph serves them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.quantization.layers import QuantizedLinear

_MOST_OTHERS = 4  # layers outside of blocks; each is a graph of its own


def repeated_blocks(model: nn.Module) -> list[list[nn.Module]]:
    """Groups of two or more blocks that can share a graph, outermost first found.

    Blocks are children of one `nn.ModuleList` or `nn.Sequential`, of one class and with parameters of the same names,
    shapes and types, that have rounded layers inside.
    """
    if isinstance(model, nn.ModuleList | nn.Sequential):
        alike: dict[object, list[nn.Module]] = defaultdict(list)
        for child in model:
            if any(isinstance(part, QuantizedLinear) for part in child.modules() if part is not child):
                alike[_likeness(child)].append(child)
        groups = [blocks for blocks in alike.values() if len(blocks) > 1]
        if groups:
            return groups
    return [group for child in model.children() for group in repeated_blocks(child)]


def regions(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> list[list[nn.Module]]:
    """Groups of modules that share a graph each: repeated blocks, and every rounded layer outside of them.

    Empty where the model repeats nothing, or where more than a few layers lie outside.
    """
    groups = repeated_blocks(model)
    inside = {part for group in groups for block in group for part in block.modules()}
    others: list[list[nn.Module]] = [[layer] for layer in dict.fromkeys(layers.values()) if layer not in inside]
    return groups + others if groups and len(others) <= _MOST_OTHERS else []


class RegionalCall:
    """Calls a model with its regions compiled; between calls the model is as it was."""

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[nn.Module]], **options: Any) -> None:
        """`options`: for `torch.compile`."""
        self._model = model
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = [
            (module, torch.compile(module.forward, **options)) for group in groups for module in group
        ]

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with self._compiled_regions():
            loss: Tensor = self._model(inputs, targets)
        return loss

    @contextmanager
    def _compiled_regions(self) -> Iterator[None]:
        own = [(module, vars(module).get("forward")) for module, _ in self._compiled]
        for module, compiled in self._compiled:
            module.forward = compiled
        try:
            yield
        finally:
            for module, forward in own:
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward


def _likeness(block: nn.Module) -> object:
    shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in block.named_parameters())
    return type(block), tuple(type(part) for part in block.modules()), shapes
