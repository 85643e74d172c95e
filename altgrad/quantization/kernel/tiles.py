"""Which values share a scale: the whole tensor, each row, or each tile.

A tensor of any shape is taken as a matrix (rows, columns), rows = all dimensions but the last.  Rows and tiles run
along the contraction dimension of a GEMM, which is the last one or the first.  A granularity is "tensor", "row", or
"AxB": tiles of A values across that dimension and B along it.  A (6, 64) tensor has, with "1x32", 12 tiles along its
last dimension (6 rows x 2) and 64 along its first one (a column of 6 values each, padded with zeros to 32); with
"row", it has 6 scales along the last dimension and 64 along the first.

A tile at the edge is padded with zeros, as hardware does: a zero changes neither an amax nor a sum of products.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.quantization.kernel.random import materialised
from altgrad.quantization.kernel.round import FormatTensors

GROUP_VALUES = 2048  # values that compiled code takes at a time: 8 KiB, which the L1 cache keeps until they are rounded
_COMPARED_ROWS, _ROUNDED_ROWS = 8, 4
_BEYOND_CACHE = 2**22  # values: 16 MiB
_FIELD = 23  # float32: bits below the exponent field
_MAGNITUDE = 0x7FFFFFFF
_NEXT_EXPONENT = 1 << _FIELD


def tile_of(granularity: str) -> tuple[int, int] | None:
    """(values across, values along) of a tile; None for "tensor" and "row".  Raises ValueError for another name."""
    if granularity in ("tensor", "row"):
        return None
    across, _, along = granularity.partition("x")
    if not (across.isdigit() and along.isdigit() and int(across) and int(along)):
        raise ValueError(f"granularity={granularity!r}; known: tensor, row, AxB such as 1x32 or 128x128")
    return int(across), int(along)


def split(x: Tensor, granularity: str, last: bool) -> Tensor:
    """x reshaped so that the values which share a scale fill whole dimensions; padded with zeros to full tiles.

    tensor: x.  row: x, or (rows, columns) for rows along the first dimension.  1 x B along the last: (..., tiles, B).
    Other tiles: (row tiles, rows, column tiles, columns).
    """
    tile = tile_of(granularity)
    if tile is None:
        return x if granularity == "tensor" or last else x.reshape(-1, x.shape[-1])
    across, along = tile
    if across == 1 and last:
        missing = -x.shape[-1] % along
        return (functional.pad(x, (0, missing)) if missing else x).unflatten(-1, (-1, along))
    rows, columns = (across, along) if last else (along, across)
    matrix = x.reshape(-1, x.shape[-1])
    missing_rows, missing_columns = -matrix.shape[0] % rows, -matrix.shape[1] % columns
    if missing_rows or missing_columns:
        matrix = functional.pad(matrix, (0, missing_columns, 0, missing_rows))
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)


def join(values: Tensor, like: Tensor, granularity: str, last: bool) -> Tensor:
    """Undo `split`: back to the shape of `like`, without the padding."""
    tile = tile_of(granularity)
    if tile is None:
        return values.reshape(like.shape)
    columns = like.shape[-1]
    if tile[0] == 1 and last:
        width = -(-columns // tile[1]) * tile[1]
        return values.reshape(*like.shape[:-1], width)[..., :columns]
    height = like.numel() // columns
    matrix = values.flatten(2).flatten(0, 1)
    return matrix[:height, :columns].reshape(like.shape)


def finite_amax(
    values: Tensor,
    granularity: str,
    last: bool,
    infinity: Tensor | float = torch.inf,
    rows: int = 1,
    by_columns: bool = False,
) -> Tensor:
    """Largest finite magnitude of each scale's values; 0 if none is finite.

    `values`: as `split` returns them; the reduced dimensions stay, with size 1; the result is 0-d for "tensor".
    `infinity`: a tensor that `in_groups` made, or the number.  `rows`: so many rows of a tile are compared first, in
    one pass along them.  `by_columns`: on a GPU, of "tensor": the amax of each column first, instead of each row.
    """
    tile = tile_of(granularity)
    if tile is not None and tile[0] == 1 and last:  # a short row of integers is slow to reduce
        magnitude = values.abs()
        return torch.where(magnitude < infinity, magnitude, 0.0).amax(dim=-1, keepdim=True)
    # The bits of magnitudes, as integers, have the order of their values.  Adding 1 to the exponent field overflows
    # into the sign for inf and NaN, whose field is 255: they become negative and never win the maximum.
    bits = (values.view(torch.int32) & _MAGNITUDE) + _NEXT_EXPONENT
    if rows > 1:
        bits = materialised(functools.reduce(torch.maximum, interleaved(bits, rows)))
    if granularity == "tensor":
        if bits.device.type == "cpu":
            largest = bits.amax()
        else:  # in two stages, of which the first may be part of the kernel that computes the values
            largest = (
                bits.flatten(0, -2).amax(dim=0).amax() if by_columns and bits.ndim > 1 else bits.amax(dim=-1).amax()
            )
    else:
        largest = bits.amax(dim=(1, 3) if tile else (-1 if last else 0), keepdim=True)
    return (largest.clamp(min=_NEXT_EXPONENT) - _NEXT_EXPONENT).view(torch.float32)


def rows_at_once(values: Tensor, granularity: str, last: bool) -> tuple[int, int]:
    """(rows that one pass of compiled CPU code compares, rows that one rounds), of large tensors in 1 x B tiles along
    the first dimension; 1 each for all others.

    The tiles of a (4096, 4096) tensor that are 1 x 32 along the first dimension are columns of 32 rows.  Left alone,
    Inductor takes the maximum of a column before that of the next one, 16 KiB from row to row, and rounds row by row,
    which loads all scales for every row again.  Eight rows at once are read like a single one, and four rows rounded at
    once load their common scales once.  Compiling that takes 1.7 times as long, so that tensors which a cache holds,
    as most are in a training step on a CPU, are rounded row by row.
    """
    tile = tile_of(granularity)
    if tile is None or tile[0] != 1 or last or values.numel() < _BEYOND_CACHE:
        return 1, 1
    return math.gcd(tile[1], _COMPARED_ROWS), math.gcd(tile[1], _ROUNDED_ROWS)


def interleaved(values: Tensor, rows: int) -> list[Tensor]:
    """Tiles (tiles, B, ...) as `rows` tensors (tiles, B / rows, ...): the rows 0, 4, 8, ... of 4, then 1, 5, 9, ..."""
    return list(values.unflatten(1, (-1, rows)).unbind(2)) if rows > 1 else [values]


def deinterleaved(parts: list[Tensor]) -> Tensor:
    """Undo `interleaved`."""
    return torch.stack(parts, 2).flatten(1, 2) if len(parts) > 1 else parts[0]


def in_groups(blocks: Tensor, fmt: FormatTensors) -> tuple[Tensor, FormatTensors]:
    """Blocks (..., B) as (groups, blocks of a group, B), with format fields that keep Inductor's loops nested.

    A (64, 1024) tensor in blocks of 32 becomes (32, 64, 32): 32 groups of 64 blocks, 2048 values each.  One loop over
    the groups that computes amax, scale and rounded values of a group reads each value from memory once.

    Left alone, Inductor merges the first two dimensions into one of 2048 blocks and splits the loop into three passes
    over all data.  Therefore three fields of the format become (64, 1) tensors of equal values, one per block of a
    group, and each of the three computations reads one of them: an index that depends on the block but not on the
    group stops the merge.  Both arguments are returned unchanged if the blocks do not fill whole groups.
    """
    along = blocks.shape[-1]
    group = GROUP_VALUES // along
    if group < 2 or blocks.numel() % (group * along):
        return blocks, fmt
    per_block = {
        name: materialised(getattr(fmt, name).repeat(group, 1)) for name in ("min_normal_bits", "max", "infinity")
    }
    return blocks.reshape(-1, group, along), fmt._replace(**per_block)
