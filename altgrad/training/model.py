"""A GPT in plain PyTorch: pre-norm blocks, GELU, SDPA, GPT-2 initialisation.

It contains nothing about number formats: `quantize_model` replaces its linear layers afterwards, as in any other model,
so that the FP32 run is exactly this model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.config.sizes.gpt_sizes import GPTShape
from altgrad.config.train_config import TrainConfig

_FLOAT32: dict[str, Any] = {"dtype": torch.float32}  # of every parameter; torch's default dtype may differ


class Attention(nn.Module):
    """Causal self-attention; x (batch, time, channels)."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.heads = shape.n_head
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd, **_FLOAT32)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, **_FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, channels) -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (batch, head, time, c)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them; the hidden width is four times the model's."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.n_embd, 4 * shape.n_embd, **_FLOAT32)
        self.down = nn.Linear(4 * shape.n_embd, shape.n_embd, **_FLOAT32)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(shape.n_embd, **_FLOAT32), Attention(shape)
        self.ln_2, self.mlp = nn.LayerNorm(shape.n_embd, **_FLOAT32), MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, channels) -> the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Decoder-only transformer.  `model(tokens, targets)` is the mean cross-entropy in nats (0-d).

    tokens, targets: (batch, time) int64, time <= block_size.
    """

    def __init__(self, shape: GPTShape, vocabulary: int, tied_head: bool = False) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, shape.n_embd, **_FLOAT32)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd, **_FLOAT32)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, **_FLOAT32)
        self.lm_head = nn.Linear(shape.n_embd, vocabulary, bias=False, **_FLOAT32)
        self._initialise(shape.n_layer)
        if tied_head:
            self.lm_head.weight = self.wte.weight

    def _initialise(self, n_layer: int) -> None:
        """Normal(0, 0.02), residual projections divided by sqrt(2 n_layer), biases 0 (Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * n_layer) ** 0.5 if residual else 0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, vocabulary)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], dtype=torch.int64, device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy in nats (0-d) of tokens and targets, (batch, time) int64."""
        return functional.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())


def build_gpt(config: TrainConfig, vocabulary: int) -> GPT:
    """The config's GPT on the CPU; its weights depend on the sizes and `config.seed`, but not on the format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT(config.shape, vocabulary, config.tied_head)
