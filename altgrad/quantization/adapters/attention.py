"""The two products inside attention, Q K^T and P V, whose operands are both activations.

    S = Q K^T    activation Q, weight K, gradient dS        O = P V    activation P, weight V^T, gradient dO

so that a recipe's six casts say how they are rounded; a block lies along what each GEMM contracts.  Softmax, masks and
dropout stay in the precision of the model.  The fused kernel shows neither product and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

SCORES, VALUES = "scores", "values"


class ProductGemm(RoundedGemm):
    """The rounded products of two activations, one for each matrix of a batch."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def module(self) -> nn.Module:
        """The module of attention."""
        return self._module

    @property
    def device(self) -> torch.device:
        """The device of the module's first Parameter."""
        return next(self._module.parameters()).device

    def times(self, a: Tensor, b: Tensor) -> Tensor:
        """a b^T for a (..., rows, k) and b (..., columns, k) with the same dimensions before."""
        y = self.multiply(a.flatten(0, -3), b.flatten(0, -3), None, batched=True)
        return y.unflatten(0, a.shape[:-2])


class RoundedAttention(RoundedModule):
    """Rounds the products of the `scaled_dot_product_attention` that a module calls in its own forward pass."""

    @classmethod
    def weights_of(cls, module: nn.Module) -> list[str]:
        return [SCORES, VALUES]

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module is one of attention, by the name of its class, and has weights."""
        name = type(module).__name__.lower()
        return ("attention" in name or "attn" in name) and any(True for _ in module.parameters())

    def made_gemms(self) -> dict[str, RoundedGemm]:
        self.owned = attention_gemms(self)
        return self.owned

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The class's own."""
        with _AttentionCalls(self.owned):
            return super().forward(*inputs, **named)


def attention_gemms(module: nn.Module) -> dict[str, RoundedGemm]:
    """Both products of a module, to be set up."""
    return {name: ProductGemm(module) for name in (SCORES, VALUES)}


class _AttentionCalls(TorchFunctionMode):
    """Context in which `scaled_dot_product_attention` rounds the operands of its products."""

    def __init__(self, gemms: Mapping[str, RoundedGemm]) -> None:
        super().__init__()
        self._gemms = gemms

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention and not all(gemm.plain for gemm in self._gemms.values()):
            return attention(self._gemms, *args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def attention(
    gemms: Mapping[str, RoundedGemm],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """(output, weights) of `functional.scaled_dot_product_attention`, both products with rounded operands.

    query (..., queries, width), key (..., keys, width), value (..., keys, columns).
    """
    scores_of, values_of = gemms[SCORES], gemms[VALUES]
    assert isinstance(scores_of, ProductGemm) and isinstance(values_of, ProductGemm)
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    query, key, value = (x.expand(*batch, *x.shape[-2:]) for x in (query, key, value))
    scores = scores_of.times(query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1)
    if attn_mask is not None:  # a query without any key gets zeros, as in torch's kernel
        weights = weights.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
    weights = functional.dropout(weights, dropout_p) if dropout_p else weights
    return values_of.times(weights.to(value.dtype), value.transpose(-1, -2)), weights
