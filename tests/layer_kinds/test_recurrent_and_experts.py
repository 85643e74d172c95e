"""Recurrent layers and experts, against their GEMMs by hand, and without rounding against the plain layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from tests.support.rounding.gemm_reference import HOW, adapted, reference_linear, same_gemms

Linear = Callable[..., Tensor]


class Experts(nn.Module):
    """Laid out as in Hugging Face's mixtures, `transposed` as in some of them; every expert gets every second token."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 12, 8)), nn.Parameter(torch.randn(3, 8, 6))
        if transposed:
            self.gate_up_proj, self.down_proj = (
                nn.Parameter(p.detach().transpose(1, 2).contiguous()) for p in (self.gate_up_proj, self.down_proj)
            )

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for expert in torch.arange(3):
            if self.is_transposed:
                gate, up = (x[expert % 2 :: 2] @ self.gate_up_proj[expert]).chunk(2, -1)
                parts.append((functional.silu(gate) * up) @ self.down_proj[expert])
            else:
                gate, up = functional.linear(x[expert % 2 :: 2], self.gate_up_proj[expert]).chunk(2, -1)
                parts.append(functional.linear(functional.silu(gate) * up, self.down_proj[expert]))
        return torch.cat(parts)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("transposed", [False, True])
def test_each_expert_of_a_mixture_is_a_linear_layer(how: str, transposed: bool) -> None:
    fields, reference = HOW[how]
    model = Experts(transposed)
    quantized = quantize_model(model, Recipe(format="E2M3", **fields))
    assert list(quantized.layers) == ["gate_up_proj", "down_proj"]

    def by_hand(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
        parts = []
        for expert, weights in enumerate(zip(gate_up_proj, down_proj, strict=True)):
            wide, narrow = (w.t() if transposed else w for w in weights)
            gate, up = reference_linear(x[expert % 2 :: 2], wide, **reference).chunk(2, -1)
            parts.append(reference_linear(functional.silu(gate) * up, narrow, **reference))
        return torch.cat(parts)

    same_gemms(model, by_hand, torch.randn(6, 8), tolerance=1e-5)
    expert = quantize_model(Experts(transposed), Recipe(format="E2M3", master_weights=False, **fields)).layers[
        "down_proj"
    ]
    kept = expert.weight.detach()
    assert torch.equal(expert.rounded_weight(), kept)  # stored on the grid on which each expert is rounded


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_rounds_inputs_of_all_times_at_once_and_states_one_by_one(kind: Any) -> None:
    layer = kind(6, 4)
    quantize_model(layer, Recipe(format="E2M3"))

    def by_hand(x: Tensor, **p: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], 4)
        inputs, outputs = reference_linear(x, p["weight_ih_l0"], p["bias_ih_l0"]), []
        for now in inputs:
            again = reference_linear(h, p["weight_hh_l0"], p["bias_hh_l0"])
            if kind is nn.LSTM:
                i, f, g, o = (now + again).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif kind is nn.GRU:
                (r, z, n), (rh, zh, nh) = now.chunk(3, -1), again.chunk(3, -1)
                z = (z + zh).sigmoid()
                h = (1 - z) * (n + (r + rh).sigmoid() * nh).tanh() + z * h
            else:
                h = (now + again).tanh()
            outputs.append(h)
        return torch.stack(outputs)

    same_gemms(layer, by_hand, torch.randn(5, 3, 6), tolerance=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True, "bias": False},
        {"proj_size": 3, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_without_rounding_is_the_plain_one(kind: Any, options: dict[str, Any]) -> None:
    if kind is nn.GRU:
        options = {name: value for name, value in options.items() if name != "proj_size"}
    plain = kind(6, 4, **options)
    rounded = copy.deepcopy(plain)
    adapted(rounded)
    first = plain.batch_first
    x = torch.randn(3, 5, 6) if first else torch.randn(5, 3, 6)
    lengths = torch.tensor([2, 5, 3])
    packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    count = plain.num_layers * (2 if plain.bidirectional else 1)
    h, c = torch.randn(count, 3, plain.proj_size or 4), torch.randn(count, 3, 4)
    start = (h, c) if kind is nn.LSTM else h
    single = tuple(state[:, 0] for state in start) if kind is nn.LSTM else start[:, 0]
    for inputs in ((x,), (x, start), (packed,), (packed, start), (x[:, 0], single)):
        for ours, expected in zip(_tensors(rounded(*inputs)), _tensors(plain(*inputs)), strict=True):
            assert ours.shape == expected.shape and torch.allclose(ours, expected, atol=1e-6)


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found if part is not None for tensor in _tensors(part)]
