"""Experts of a mixture whose weights lie in one Parameter each, (experts, out, in) or (experts, in, out).

Hugging Face's Mixtral, Qwen3-MoE and others keep `gate_up_proj` and `down_proj` so.  Each expert is a GEMM of its own
with scales of its own; of delayed scaling, the experts of one Parameter share the history.  The module's own forward
pass runs, expert by expert, and not one of its fused or grouped kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad import torch_private
from altgrad.quantization.adapters.linear import LinearCalls
from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.layers import OwnedGemm


class ExpertGemm(OwnedGemm):
    """The products with the matrices of one Parameter (experts, ., .)."""

    def __init__(self, module: nn.Module, weight: str, transposed: bool) -> None:
        super().__init__(module, weight)
        self.transposed = transposed
        self.cuts_columns = {0: None, 1: transposed, 2: not transposed}

    def matrices(self, weight: Tensor) -> list[Tensor]:
        return [expert.t() if self.transposed else expert for expert in weight.unbind()]

    def from_matrices(self, matrices: Sequence[Tensor]) -> Tensor:
        found = torch.stack(list(matrices))
        return found.transpose(1, 2) if self.transposed else found

    def one_matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(0, 1)

    def sizes(self) -> tuple[int, int]:
        out, into = self.weight.shape[1:]
        return (into, out) if self.transposed else (out, into)

    def has(self, weight: Tensor) -> bool:
        """Whether a matrix (out, in) is the weight of one of these experts."""
        own = self.weight
        return weight.shape == self.sizes() and torch_private.storage_key(weight) == torch_private.storage_key(own)


class RoundedExperts(RoundedModule):
    """Rounds the products of a module that multiplies by slices of its Parameters of 3 dimensions, one at a time."""

    @classmethod
    def weights_of(cls, module: nn.Module) -> list[str]:
        return [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module of a class that is not registered is one of experts: 3-d weights `down_proj` and others."""
        names = cls.weights_of(module)
        return "down_proj" in names and ("gate_up_proj" in names or "up_proj" in names)

    def made_gemms(self) -> dict[str, RoundedGemm]:
        transposed = bool(getattr(self, "is_transposed", False))
        names = self.weights_of(self)
        self.owned = {name: ExpertGemm(self, name, transposed) for name in names}
        return self.owned

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The class's own, which runs the experts one by one, below any wrapper that would pick a fused kernel."""
        if self.plain:
            return super().forward(*inputs, **named)
        forward = inspect.unwrap(self.plain_class.forward)
        with LinearCalls(self._linear, transposed=True):
            return forward(self, *inputs, **named)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        for layer in self.owned.values():
            if isinstance(layer, ExpertGemm) and layer.has(weight):
                return layer.multiply(x, weight, bias)
        return None
