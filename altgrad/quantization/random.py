"""Counter-based random numbers for stochastic rounding: element i of a tensor gets hash(key, i).

Reproducible from (seed, step, tensor) on any number of threads and on any device, with nothing to keep, and
several times cheaper than a stateful generator, because it fuses into the rounding pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Multipliers of a 32-bit finaliser with low bias, found by search (C. Wellons, "Prospecting for hash functions").
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
# Odd multipliers that spread keys and salts over 32 bits; any without a simple relation will do.
_OUTER, _INNER = (0x1E3779B9, 0x5EBCA6B3, 0x42B2AE35), (0x3C6EF35F, 0x19660D25, 0x27D4EB2F)


def draw_key(generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """A fresh key (2 int32) from a torch generator, on `device`."""
    source = generator.device if generator is not None else "cpu"
    return torch.randint(2**31 - 1, (2,), generator=generator, dtype=torch.int32, device=source).to(device)


def uniform(key: Tensor, like: Tensor, salt: int | Tensor = 0) -> Tensor:
    """Uniform float32 in [0, 1), multiples of 2^-24, in the shape of `like`; `salt` (an int,
    or 0-d int32) tells tensors of one key apart.

    The key enters twice, before and between the two rounds of mixing: streams are no shifted copies of each other.
    """
    # A value that is read twice is computed twice where a compiler inlines it: few such uses, none for the keys.
    word = _counter(like, start=_spread(key, salt, _OUTER))
    word = (word ^ _logical_shift(word, 16)) * _FIRST
    word = word + materialised(_spread(key, salt, _INNER))
    word = (word ^ _logical_shift(word, 15)) * _SECOND
    word = word ^ _logical_shift(word, 16)
    return _logical_shift(word, 8).to(torch.float32) * 2.0**-24


def _counter(like: Tensor, start: Tensor) -> Tensor:
    """start + index of the element, in the shape of `like` (int32).

    As row start + column, both stored: an index within a vector loop costs more than the whole hash.
    """
    if like.ndim < 2:
        return start + torch.arange(like.numel(), dtype=torch.int32, device=like.device).view(like.shape)
    columns = like.shape[-1]
    rows = torch.arange(like.numel() // columns, dtype=torch.int32, device=like.device).view(*like.shape[:-1], 1)
    within = torch.arange(columns, dtype=torch.int32, device=like.device)
    return materialised(start + rows * columns) + materialised(within)


def materialised(x: Tensor) -> Tensor:
    """x itself; a compiler that would compute it anew for each of its readers (Inductor) stores it instead."""
    return torch.as_strided(x, x.shape, x.stride())


def _spread(key: Tensor, salt: int | Tensor, multipliers: tuple[int, int, int]) -> Tensor:
    """A 32-bit combination of key and salt (int32, 0-d); int32 arithmetic wraps."""
    constant = salt * multipliers[2] & 0x7FFFFFFF
    return key[0] * multipliers[0] + key[1] * multipliers[1] + constant


def _logical_shift(word: Tensor, places: int) -> Tensor:
    return (word >> places) & ((1 << (32 - places)) - 1)
