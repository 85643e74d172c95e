"""Sizes of the built-in GPT.  Nothing here imports torch: a sweep can be planned on a machine without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GPTShape:
    """Sizes of a GPT.  Raises ValueError unless `n_head` divides `n_embd`."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")


PRESETS: Mapping[str, GPTShape] = {
    "micro": GPTShape(2, 2, 32, 32),  # for tests
    "tiny": GPTShape(4, 4, 96, 64),  # 0.5M parameters, for a laptop
    "small": GPTShape(6, 6, 384, 256),  # 11M parameters: minutes on one GPU
    "medium": GPTShape(8, 8, 512, 512),  # 26M
    "gpt2": GPTShape(12, 12, 768, 1024),  # 86M parameters without the embeddings
}
