"""Rounding of a batch of matrices, each of which is an operand of a GEMM of its own.

The kernel takes a tensor as one matrix, all dimensions but the last in one.  With one scale for the tensor that is the
whole batch; rows and tiles along the first dimension of each matrix must not run from one matrix into the next.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from altgrad.quantization.kernel.scaled_rounding import Mode, round_site
from altgrad.quantization.kernel.tiles import tile_of


def one_scale(mode: Mode) -> bool:
    """Whether a rounding is the same however its tensor is laid out: one scale, and no rotation."""
    return mode.granularity == "tensor" and not mode.hadamard


def round_batched(x: Tensor, spec: Tensor, history: Tensor, key: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """(Q(x), counts) for x (b, rows, columns); with a rotation the rotated dimension is padded, as by `rotated`."""
    if one_scale(mode) or x.numel() == 0:
        return round_site(x, spec, history, key, mode)
    flat = as_matrix(x, mode)
    rounded, counts = round_site(flat, spec, history, key, mode)
    return from_matrix(rounded, x, mode), counts


def as_matrix(x: Tensor, mode: Mode) -> Tensor:
    """x (b, rows, columns) laid out so that the kernel keeps its matrices apart, padded with zeros where needed.

    Along the last dimension (b, rows, columns); along the first (rows, b x columns).
    """
    tile = tile_of(mode.granularity)
    across = 1 if tile is None else tile[0]
    if mode.last:
        missing = -x.shape[1] % across
        return functional.pad(x, (0, 0, 0, missing)) if missing else x
    missing = -x.shape[2] % across
    padded = functional.pad(x, (0, missing)) if missing else x
    return padded.movedim(1, 0).flatten(1)


def from_matrix(values: Tensor, like: Tensor, mode: Mode) -> Tensor:
    """Undo `as_matrix`; `like`: its argument."""
    if mode.last:
        return values[:, : like.shape[1]]
    return values.unflatten(1, (like.shape[0], -1)).movedim(1, 0)[..., : like.shape[2]]
