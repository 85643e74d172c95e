"""Counter-based random numbers for stochastic rounding: each element gets a hash of (key, its row, its column).

The numbers depend on seed, step, tensor and position alone, so that any number of threads and any device draws the
same ones and a checkpoint needs no generator state.  Because the hash fuses into the rounding pass, it is several times
cheaper than a stateful generator.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Multipliers of a 32-bit finaliser with low bias, found by search (C. Wellons, "Prospecting for hash functions").
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
# Odd multipliers that spread keys, salts and uses over 32 bits; any numbers without a simple ratio would do.
_OUTER = (0x1E3779B9, 0x5EBCA6B3, 0x42B2AE35, 0x2C1B3C6D)
_INNER = (0x3C6EF35F, 0x19660D25, 0x27D4EB2F, 0x165667B1)


def draw_key(generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """A new key, two random int32, drawn from a torch generator (the default one if None) and moved to `device`."""
    source = generator.device if generator is not None else "cpu"
    return torch.randint(2**31 - 1, (2,), generator=generator, dtype=torch.int32, device=source).to(device)


def fill_key(key: Tensor, *words: int) -> None:
    """Set a key in place to the lowest 31 bits of each word, by fills: a copy from the host would synchronise."""
    for position, word in enumerate(words):
        key[position].fill_(word & 0x7FFFFFFF)


def derived_words(*origin: int) -> tuple[int, int]:
    """Two words for `fill_key`, 62 bits of a hash of `origin`: keys of different origins are unrelated."""
    digest = hashlib.sha256(repr(origin).encode()).digest()
    first, second = (int.from_bytes(part, "little") & 0x7FFFFFFF for part in (digest[:4], digest[4:8]))
    return first, second


def uniform(
    key: Tensor, like: Tensor, salt: int | Tensor = 0, shared: bool = False, use: int = 0, each: bool = False
) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24, in the shape of `like`.

    `salt` (int, or 0-d int32): tensors with one key and different salts get different numbers.  `use`: number of
    earlier draws for this tensor with this key.
    `shared`: `like` is this rank's part of a larger tensor, cut along the first dimension, and gets the numbers that
    the whole tensor has there.  The third value of the key is then the rank.
    `each`: `like` is a stack of tensors along its first dimension, and `salt`, (len(like),), has the salt of each; each
    gets the numbers that it gets alone.

    An (R, C) tensor needs R row words and C column words, each a full hash in which the key enters differently; they
    are stored.  Element (3, 5) adds row word 3 to column word 5 and mixes the sum once more.  That is cheaper than a
    full hash per element, and makes rows and columns more independent (bench/NOTES.md).
    """
    if like.numel() == 0:
        return torch.zeros_like(like)
    shape, stack = (like.shape[1:], like.shape[:1]) if each else (like.shape, like.shape[:0])
    columns = shape[-1] if len(shape) > 1 else 1
    rows = shape.numel() // columns
    if each:
        assert isinstance(salt, Tensor)
        salt = salt.view(-1, 1)
    above = torch.arange(rows, dtype=torch.int32, device=like.device)
    above = above + key[2] * rows if shared else above
    row = _mixed(_spread(key, salt, use, _OUTER) + above, _FIRST, _SECOND)
    row = row.view(*stack, *shape[:-1], 1) if len(shape) > 1 else row.view(like.shape)
    within = torch.arange(columns, dtype=torch.int32, device=like.device)
    column = _mixed(_spread(key, salt, use, _INNER) + within, _SECOND, _FIRST)
    if each and len(shape) > 1:
        column = column.view(*stack, *(1 for _ in shape[:-1]), columns)
    # Stored first: otherwise Inductor inlines both hashes and computes them for every element.
    word = materialised(row) + materialised(column)
    word = (word ^ _logical_shift(word, 15)) * _SECOND
    word = word ^ _logical_shift(word, 16)
    return _logical_shift(word, 8).to(torch.float32) * 2.0**-24


def _mixed(word: Tensor, first: int, second: int) -> Tensor:
    """A 32-bit finaliser: every bit of the word changes about half of the bits of the result.

    Rows and columns use different multipliers.  With the same ones, equal row and column words would make the noise a
    symmetric matrix.
    """
    word = (word ^ _logical_shift(word, 16)) * first
    word = (word ^ _logical_shift(word, 15)) * second
    return word ^ _logical_shift(word, 15)


def materialised(x: Tensor) -> Tensor:
    """x itself; makes Inductor store x in memory instead of computing it anew for each of its readers."""
    return torch.as_strided(x, x.shape, x.stride())


def _spread(key: Tensor, salt: int | Tensor, use: int, multipliers: tuple[int, int, int, int]) -> Tensor:
    """A 32-bit combination of key, salt and use (int32, in the shape of the salt); int32 arithmetic wraps."""
    constant = (salt * multipliers[2] + (use * multipliers[3] & 0x7FFFFFFF)) & 0x7FFFFFFF
    return key[0] * multipliers[0] + key[1] * multipliers[1] + constant


def _logical_shift(word: Tensor, places: int) -> Tensor:
    return (word >> places) & ((1 << (32 - places)) - 1)
