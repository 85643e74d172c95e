"""Linear layers that round the operands of their GEMMs, and what every layer with rounded products shares.

The product itself, its roundings and their counts: see `gemms.rounded_gemm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from torch import Tensor, nn

from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm


class RoundedLayer(RoundedGemm, RoundedModule):
    """A module with one rounded product, that with its `weight`."""

    @classmethod
    def weights_of(cls, module: nn.Module) -> list[str]:
        return [""]

    def made_gemms(self) -> dict[str, RoundedGemm]:
        return {"": self}

    def gemms(self) -> Mapping[str, RoundedGemm]:
        return {"": self}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.key.device != self.weight.device:
            self.follow()
        return self

    def extra_repr(self) -> str:
        """The layer's sizes and the format of each site, for `print`."""
        formats = ", ".join(f"{name}={site.format}" for name, site in self.sites.items())
        return f"{super().extra_repr()}, {formats}"


class OwnedGemm(RoundedGemm):
    """A rounded product of a module with a weight that has a name of its own, such as `in_proj_weight`."""

    def __init__(self, module: nn.Module, weight: str) -> None:
        self._module, self._weight = module, weight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The module's Parameter of that name."""
        weight: Tensor = getattr(self._module, self._weight)
        return weight

    @property
    def module(self) -> nn.Module:
        """The module that has the weight."""
        return self._module


class QuantizedLinear(RoundedLayer, nn.Linear):
    """A linear layer that rounds the operands of its GEMMs.

    weight (out, in); input (..., in), output (..., out), computed in float32 and returned in the dtype that the plain
    layer would return.
    """

    plain_class = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)"""
        return self.multiply(x, self.weight, self.bias)


def gemms_of(model: nn.Module) -> list[RoundedGemm]:
    """All rounded products of a model, those without weights included."""
    return [gemm for module in model.modules() if isinstance(module, RoundedModule) for gemm in module.gemms().values()]


@contextmanager
def unrounded(layers: Iterable[RoundedGemm]) -> Iterator[None]:
    """Context in which the layers compute as plain layers and count nothing; it may be nested."""
    layers = list(layers)
    for layer in layers:
        layer.bypass += 1
    try:
        yield
    finally:
        for layer in layers:
            layer.bypass -= 1
