"""Linear layers that are no plain `nn.Linear`: a transposed weight, and subclasses with a forward pass of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from altgrad.quantization.layers import RoundedLayer

Linear = Callable[[Tensor, Tensor, "Tensor | None"], "Tensor | None"]


class RoundedTransposedLinear(RoundedLayer):
    """A linear layer with weight (in, out), as `Conv1D` of Hugging Face's GPT-2; its GEMMs read the transpose."""

    weight: Tensor
    bias: Tensor | None
    cuts_columns = {0: True, 1: False}  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)"""
        return self.multiply(x, self.weight.t(), self.bias)

    def matrices(self, weight: Tensor) -> list[Tensor]:
        return [weight.t()]

    def from_matrices(self, matrices: Sequence[Tensor]) -> Tensor:
        return matrices[0].t()

    def sizes(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[0]


class RoundedOwnForward(RoundedLayer):
    """A subclass of `nn.Linear` whose own forward pass runs; what it multiplies by a weight of that shape is rounded.

    It may scale input, weight or output, or add to them.
    """

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The class's own."""
        with LinearCalls(self._linear):
            return super().forward(*inputs, **named)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return self.multiply(x, weight, bias) if weight.shape == self.weight.shape else None


class LinearCalls(TorchFunctionMode):
    """Context in which products x W^T + b are asked of `linear`; a None in answer leaves the product to torch.

    It sees `functional.linear`, and `x @ weight` as well where `transposed` is set: then W is the transpose of that.
    """

    def __init__(self, linear: Linear, transposed: bool = False) -> None:
        super().__init__()
        self._linear, self._transposed = linear, transposed

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        found = None
        if func is functional.linear:
            found = self._linear(*_arguments(args, named))
        elif self._transposed and func in _PRODUCTS and len(args) == 2:
            found = self._linear(args[0], args[1].transpose(-1, -2), None)
        return func(*args, **named) if found is None else found


def _arguments(args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, weight, bias) of a call of `functional.linear`."""
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(named)
    return given["input"], given["weight"], given.get("bias")


_PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
