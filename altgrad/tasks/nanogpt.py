"""nanoGPT's model on a folder or file as nanoGPT prepares it: train.bin and val.bin (uint16), and maybe meta.pkl.

    python tune/sweep.py --task nanogpt --data nanoGPT/data/shakespeare_char --formats E4M3 E7M0

The sizes are those of the config.  The parameters have nanoGPT's names, shapes and initial distributions, and the head
shares the token embedding's weights, so that its checkpoints load (`start_from`) and ours load there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.config.train_config import TrainConfig
from altgrad.training.task.gpt import NextToken

_FLOAT32: dict[str, Any] = {"dtype": torch.float32}  # of every parameter; torch's default dtype may differ


class NanoNorm(nn.Module):
    """Layer norm whose bias may be left out."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, **_FLOAT32))
        self.bias = nn.Parameter(torch.zeros(width, **_FLOAT32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class NanoAttention(nn.Module):
    """Causal self-attention; x (batch, time, channels)."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width, bias=bias, **_FLOAT32)
        self.c_proj = nn.Linear(width, width, bias=bias, **_FLOAT32)
        self.resid_dropout = nn.Dropout(dropout)
        self._heads, self._dropout = heads, dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        kept = self._dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=kept, is_causal=True)
        found: Tensor = self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(-2)))
        return found


class NanoPerceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias, **_FLOAT32)
        self.c_proj = nn.Linear(4 * width, width, bias=bias, **_FLOAT32)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.dropout(self.c_proj(functional.gelu(self.c_fc(x))))
        return found


class NanoBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.attn = NanoNorm(width, bias), NanoAttention(width, heads, bias, dropout)
        self.ln_2, self.mlp = NanoNorm(width, bias), NanoPerceptron(width, bias, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        found: Tensor = x + self.mlp(self.ln_2(x))
        return found


class NanoModel(nn.Module):
    """nanoGPT's GPT.  `model(tokens, targets)` is the mean cross-entropy in nats (0-d); targets of -1 do not count."""

    def __init__(self, config: TrainConfig, vocabulary: int, bias: bool, dropout: float) -> None:
        super().__init__()
        shape = config.shape
        width = shape.n_embd
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(vocabulary, width, **_FLOAT32),
            "wpe": nn.Embedding(shape.block_size, width, **_FLOAT32),
            "drop": nn.Dropout(dropout),
            "h": nn.ModuleList(NanoBlock(width, shape.n_head, bias, dropout) for _ in range(shape.n_layer)),
            "ln_f": NanoNorm(width, bias),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(width, vocabulary, bias=False, **_FLOAT32)
        self.lm_head.weight = parts["wte"].weight  # type: ignore[assignment]
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.n_layer) if residual else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        parts: Any = self.transformer
        x = parts.wte(tokens) + parts.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = parts.drop(x)
        for block in parts.h:
            x = block(x)
        logits = self.lm_head(parts.ln_f(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


class NanoGPT(NextToken):
    """The task.  bias, dropout: nanoGPT's settings of these names."""

    def __init__(self, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self._bias, self._dropout = bias, dropout

    def model(self, config: TrainConfig) -> nn.Module:
        """nanoGPT's model for the vocabulary of the data."""
        vocabulary = self.classes(config)
        assert vocabulary is not None
        return NanoModel(config, vocabulary, self._bias, self._dropout)


task = NanoGPT
