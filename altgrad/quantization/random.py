"""Counter-based random numbers for stochastic rounding: element i of a tensor gets hash(key, i).

Reproducible from (seed, step, tensor) on any number of threads and on any device, with nothing to keep, and
several times cheaper than a stateful generator, because it fuses into the rounding pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Multipliers of a 32-bit finaliser with low bias, found by search (C. Wellons, "Prospecting for hash functions").
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97


def draw_key(generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """A fresh key (2 int32) from a torch generator, on `device`."""
    source = generator.device if generator is not None else "cpu"
    return torch.randint(2**31 - 1, (2,), generator=generator, dtype=torch.int32, device=source).to(device)


def uniform(key: Tensor, like: Tensor, salt: int = 0) -> Tensor:
    """Uniform float32 in [0, 1), multiples of 2^-24, in the shape of `like`; `salt` tells tensors of one key apart."""
    counter = torch.arange(like.numel(), dtype=torch.int32, device=like.device).view(like.shape)
    word = _mix(_mix(counter ^ _mix(key[0] + salt)) + key[1])
    return ((word >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _mix(word: Tensor) -> Tensor:
    """Mix 32 bits so that each input bit flips each output bit half of the time; int32 arithmetic wraps."""
    word = (word ^ _logical_shift(word, 16)) * _FIRST
    word = (word ^ _logical_shift(word, 15)) * _SECOND
    return word ^ _logical_shift(word, 15)


def _logical_shift(word: Tensor, places: int) -> Tensor:
    return (word >> places) & ((1 << (32 - places)) - 1)
