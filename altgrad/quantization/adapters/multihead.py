"""`nn.MultiheadAttention`, which multiplies by its projections itself, in torch's fused kernel or in a function.

The forward pass here is that of the function, step by step, with its projections through rounded layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.quantization.adapters.attention import SCORES, attention
from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.layers import OwnedGemm, gemms_of

_PACKED, _SEPARATE = ("in_proj_weight",), ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class RoundedMultiheadAttention(RoundedModule):
    """Rounds `in_proj_weight` (3 width, width), or the three weights of its parts if key or value have other widths.

    The output projection is a linear layer of its own.  Where query, key and value differ, their thirds of
    `in_proj_weight` are products of their own, each with its scales.
    """

    @classmethod
    def weights_of(cls, module: nn.Module) -> list[str]:
        return list(_SEPARATE if module.in_proj_weight is None else _PACKED)

    def made_gemms(self) -> dict[str, RoundedGemm]:
        self.owned = {name: OwnedGemm(self, name) for name in self.weights_of(self)}
        return self.owned

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, but without nested tensors, which only the fused kernel takes."""
        if all(gemm.plain for gemm in gemms_of(self)):  # the output projection included
            masks = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            found: tuple[Tensor, Tensor | None] = super().forward(query, key, value, *masks)
            return found
        if any(tensor.is_nested for tensor in (query, key, value)):
            raise ValueError("a rounded nn.MultiheadAttention takes no nested tensors; pass padded ones and a mask")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask, which is missing")
        plain: Any = self
        dtype, single = query.dtype, query.ndim == 2
        alike = query is key and key is value
        if single:
            query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif plain.batch_first:
            query, key, value = (tensor.transpose(0, 1).contiguous() for tensor in (query, key, value))
        length, batch, width = query.shape
        heads, padding, mask = plain.num_heads, _added(key_padding_mask, dtype), _added(attn_mask, dtype)
        if is_causal and padding is None and not need_weights:
            mask = None  # the kernel makes it
        is_causal = is_causal and mask is None
        q, k, v = self._projected(query, key, value, alike)
        if plain.bias_k is not None and plain.bias_v is not None:
            k, v = torch.cat([k, plain.bias_k.repeat(1, batch, 1)]), torch.cat([v, plain.bias_v.repeat(1, batch, 1)])
            mask, padding = _wider(mask), _wider(padding)
        q, k, v = (x.reshape(x.shape[0], batch * heads, -1).transpose(0, 1) for x in (q, k, v))
        if plain.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(batch * heads, 1, x.shape[2])], 1) for x in (k, v))
            mask, padding = _wider(mask), _wider(padding)
        mask = _joined(mask, padding, batch, heads)
        dropout = plain.dropout if plain.training else 0.0
        weights = None
        rounded = SCORES in self.owned
        if rounded:
            q, k, v = (x.unflatten(0, (batch, heads)) for x in (q, k, v))
            mask = _of_heads(mask, batch, heads)
            y, weights = attention(self.owned, q, k, v, mask, dropout, is_causal)
        elif need_weights:
            scores = torch.bmm(q * math.sqrt(1.0 / q.shape[-1]), k.transpose(1, 2))
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            y = torch.bmm(weights, v).unflatten(0, (batch, heads))
            weights = weights.unflatten(0, (batch, heads))
        else:
            q, k, v = (x.unflatten(0, (batch, heads)) for x in (q, k, v))
            mask = _of_heads(mask, batch, heads)
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        weights = weights if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        y = y.permute(2, 0, 1, 3).reshape(length * batch, width)
        y = plain.out_proj(y).view(length, batch, -1)
        if single:
            return y.squeeze(1), None if weights is None else weights.squeeze(0)
        return y.transpose(0, 1) if plain.batch_first else y, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, alike: bool) -> list[Tensor]:
        """q, k, v of shape (time, batch, width)."""
        plain: Any = self
        bias = plain.in_proj_bias
        if plain.in_proj_weight is None:
            weights: list[Tensor] = [getattr(plain, name) for name in _SEPARATE]
            layers = [self.owned[name] for name in _SEPARATE]
        else:
            packed = self.owned[_PACKED[0]]
            if alike:  # one product; laid out as torch does, for the same sums
                y = packed.multiply(query, plain.in_proj_weight, bias)
                thirds = y.unflatten(-1, (3, -1)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
                return list(thirds)
            weights, layers = list(plain.in_proj_weight.chunk(3)), [packed] * 3
        biases = [None] * 3 if bias is None else bias.chunk(3)
        inputs = (query, key, value)
        return [layer.multiply(x, w, b) for layer, x, w, b in zip(layers, inputs, weights, biases, strict=True)]


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers to add to the scores: -inf where a boolean one says True."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask.to(dtype)


def _wider(mask: Tensor | None) -> Tensor | None:
    """The mask with one more key, which may be attended to."""
    return None if mask is None else functional.pad(mask, (0, 1))


def _joined(mask: Tensor | None, padding: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """Both masks in one, (batch x heads or 1, queries or 1, keys)."""
    if padding is not None:
        padding = padding[:, None, None, :].expand(-1, heads, -1, -1).flatten(0, 1)
    if mask is not None and mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask is None:
        return padding
    return mask if padding is None else mask + padding


def _of_heads(mask: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """The mask (batch or 1, heads or 1, queries, keys)."""
    if mask is None:
        return None
    return mask.unsqueeze(0) if mask.shape[0] == 1 else mask.unflatten(0, (batch, heads))
