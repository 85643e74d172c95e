"""Counter-based random numbers for stochastic rounding: an element gets a hash of (key, its row, its column).

Reproducible from (seed, step, tensor) on any number of threads and on any device, with nothing to keep, and
several times cheaper than a stateful generator, because it fuses into the rounding pass.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Multipliers of a 32-bit finaliser with low bias, found by search (C. Wellons, "Prospecting for hash functions").
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
# Odd multipliers that spread keys, salts and uses over 32 bits; any without a simple relation will do.
_OUTER = (0x1E3779B9, 0x5EBCA6B3, 0x42B2AE35, 0x2C1B3C6D)
_INNER = (0x3C6EF35F, 0x19660D25, 0x27D4EB2F, 0x165667B1)


def draw_key(generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """A fresh key (2 int32) from a torch generator, on `device`."""
    source = generator.device if generator is not None else "cpu"
    return torch.randint(2**31 - 1, (2,), generator=generator, dtype=torch.int32, device=source).to(device)


def fill_key(key: Tensor, *words: int) -> None:
    """Set a key to non-negative words (the lowest 31 bits count) without a copy from the host, which would wait for
    the device."""
    for position, word in enumerate(words):
        key[position].fill_(word & 0x7FFFFFFF)


def derived_words(*origin: int) -> tuple[int, int]:
    """Two words for `fill_key`, 62 bits of a hash: keys of other origins have nothing to do with each other."""
    digest = hashlib.sha256(repr(origin).encode()).digest()
    first, second = (int.from_bytes(part, "little") & 0x7FFFFFFF for part in (digest[:4], digest[4:8]))
    return first, second


def uniform(key: Tensor, like: Tensor, salt: int | Tensor = 0, shared: bool = False, use: int = 0) -> Tensor:
    """Uniform float32 in [0, 1), multiples of 2^-24, in the shape of `like`; `salt` (an int,
    or 0-d int32) tells tensors of one key apart, `use` (from 0) how often one tensor's place was drawn for before.

    `shared`: `like` is this rank's part of a larger tensor, cut along the first dimension; it gets the numbers of its
    place there.  The key then has the rank as its third value.

    Rows and columns are each hashed in full, with the key entering both in its own way, and stored; an element adds its
    two words and mixes once more.  That is cheaper than a counter mixed in full per element, and rows and columns are
    more independent (bench/NOTES.md).
    """
    if like.numel() == 0:
        return torch.zeros_like(like)
    columns = like.shape[-1] if like.ndim > 1 else 1
    rows = like.numel() // columns
    above = torch.arange(rows, dtype=torch.int32, device=like.device)
    above = above + key[2] * rows if shared else above
    row = _mixed(_spread(key, salt, use, _OUTER) + above, _FIRST, _SECOND)
    row = row.view(*like.shape[:-1], 1) if like.ndim > 1 else row.view(like.shape)
    within = torch.arange(columns, dtype=torch.int32, device=like.device)
    column = _mixed(_spread(key, salt, use, _INNER) + within, _SECOND, _FIRST)
    # A value that is read twice is computed twice where a compiler inlines it.
    word = materialised(row) + materialised(column)
    word = (word ^ _logical_shift(word, 15)) * _SECOND
    word = word ^ _logical_shift(word, 16)
    return _logical_shift(word, 8).to(torch.float32) * 2.0**-24


def _mixed(word: Tensor, first: int, second: int) -> Tensor:
    """A 32-bit finaliser: every bit of the word changes about half of the bits of the result.

    Rows and columns have different ones: with one, equal words of both would make the noise symmetric.
    """
    word = (word ^ _logical_shift(word, 16)) * first
    word = (word ^ _logical_shift(word, 15)) * second
    return word ^ _logical_shift(word, 15)


def materialised(x: Tensor) -> Tensor:
    """x itself; a compiler that would compute it anew for each of its readers (Inductor) stores it instead."""
    return torch.as_strided(x, x.shape, x.stride())


def _spread(key: Tensor, salt: int | Tensor, use: int, multipliers: tuple[int, int, int, int]) -> Tensor:
    """A 32-bit combination of key, salt and use (int32, 0-d); int32 arithmetic wraps."""
    constant = (salt * multipliers[2] + (use * multipliers[3] & 0x7FFFFFFF)) & 0x7FFFFFFF
    return key[0] * multipliers[0] + key[1] * multipliers[1] + constant


def _logical_shift(word: Tensor, places: int) -> Tensor:
    return (word >> places) & ((1 << (32 - places)) - 1)
