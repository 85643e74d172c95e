"""Finds and compiles the repeated blocks of a model, each group of equal blocks as one graph.

Compiling a whole step costs seconds per layer.  Blocks of one shape differ only in data (weights, formats, salts), so
that one graph serves all of them: a GPT of 12 blocks needs one graph for its blocks and one for its output head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

_MOST_OTHERS = 4  # rounded layers outside of blocks, each of which needs a separate graph


def repeated_blocks(model: nn.Module) -> list[list[nn.Module]]:
    """Groups of two or more blocks that can share a graph; inside a found group no smaller ones are searched.

    Blocks of a group are children of one `nn.ModuleList` or `nn.Sequential`, contain rounded layers, and agree in their
    class and in the names, shapes and dtypes of their parameters.
    """
    if isinstance(model, nn.ModuleList | nn.Sequential):
        alike: dict[object, list[nn.Module]] = defaultdict(list)
        for child in model:
            if any(isinstance(part, RoundedModule) for part in child.modules() if part is not child):
                alike[_likeness(child)].append(child)
        groups = [blocks for blocks in alike.values() if len(blocks) > 1]
        if groups:
            return groups
    return [group for child in model.children() for group in repeated_blocks(child)]


def regions(model: nn.Module, layers: Mapping[str, RoundedGemm]) -> list[list[nn.Module]]:
    """Groups of modules with one graph per group: the repeated blocks, and each rounded layer outside of them.

    Empty if the model repeats no block, or if more than a few rounded layers lie outside.
    """
    groups = repeated_blocks(model)
    inside = {part for group in groups for block in group for part in block.modules()}
    others: list[list[nn.Module]] = [
        [module] for module in dict.fromkeys(layer.module for layer in layers.values()) if module not in inside
    ]
    return groups + others if groups and len(others) <= _MOST_OTHERS else []


class RegionalCall:
    """Calls a function of a model whose regions are compiled; outside of a call the model is unchanged."""

    def __init__(self, call: Callable[..., Any], groups: Sequence[Sequence[nn.Module]], **options: Any) -> None:
        """`call`: runs the model.  `options`: for `torch.compile`."""
        self._call = call
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = [
            (module, torch.compile(module.forward, **options)) for group in groups for module in group
        ]

    def __call__(self, batch: Any) -> Any:
        with self._compiled_regions():
            return self._call(batch)

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
