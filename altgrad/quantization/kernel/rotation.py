"""Hadamard rotation: spreads an outlier over its neighbours before a block is rounded.

Both operands of a GEMM are rotated along the contraction dimension by the same orthogonal matrix R, and
(A R)(B R)^T = A B^T, so that the product needs no inverse rotation.  R is block-diagonal; each block is an n x n
Hadamard matrix divided by sqrt(n), whose rows get random signs.  A block [8, 0, 0, 0] becomes [4, 4, 4, 4] (up to
signs): the largest value, and with it the scale, is halved.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.quantization.kernel.random import uniform

_FIXED_SEED = 0x5EED


def hadamard(size: int, device: torch.device | str = "cpu") -> Tensor:
    """Sylvester's Hadamard matrix divided by sqrt(size): (size, size), float32, orthogonal; size: a power of two.

    Entry (i, j) is negative if i and j have an odd number of bits in common.  It is computed anew each time: a matrix
    kept from the tracing of one graph could not be used in the next one.
    """
    index = torch.arange(size, dtype=torch.int32, device=device)
    common = index[:, None] & index
    for places in (8, 4, 2, 1):  # the parity of up to 16 bits
        common = common ^ (common >> places)
    return (1 - 2 * (common & 1)).to(torch.float32) * size**-0.5


def signs(size: int, key: Tensor | None, device: torch.device | str = "cpu") -> Tensor:
    """Random signs (size,), float32, drawn from a step's key; fixed ones if the key is None."""
    if key is None:
        key = torch.full((2,), _FIXED_SEED, dtype=torch.int32, device=device)
    noise = uniform(key, torch.empty(size, dtype=torch.float32, device=device), salt=_FIXED_SEED)
    return torch.where(noise < 0.5, -1.0, 1.0)


def rotated(x: Tensor, size: int, last: bool, key: Tensor | None) -> Tensor:
    """x (..., n), taken as a matrix (rows, n), rotated in blocks of `size` along its last or its first dimension.

    The rotated dimension is padded with zeros to a multiple of `size`: the result has the shape (..., n rounded up) for
    the last dimension, and (rows rounded up, n) for the first.
    """
    turn = signs(size, key, x.device)[:, None] * hadamard(size, x.device)
    if last:
        missing = -x.shape[-1] % size
        padded = functional.pad(x, (0, missing)) if missing else x
        return (padded.unflatten(-1, (-1, size)) @ turn).flatten(-2)
    matrix = x.reshape(-1, x.shape[-1])
    missing = -matrix.shape[0] % size
    padded = functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix
    return (turn.t() @ padded.unflatten(0, (-1, size))).flatten(0, 1)


def unrotated(x: Tensor, shape: torch.Size, size: int, last: bool, key: Tensor | None) -> Tensor:
    """Undo `rotated` by the transposed matrix; `shape`: that of the original tensor, without padding."""
    turn = signs(size, key, x.device)[:, None] * hadamard(size, x.device)
    if last:
        return (x.unflatten(-1, (-1, size)) @ turn.t()).flatten(-2)[..., : shape[-1]]
    matrix = (turn @ x.unflatten(0, (-1, size))).flatten(0, 1)
    return matrix[: shape[:-1].numel()].reshape(shape)
