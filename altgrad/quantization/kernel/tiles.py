"""Which values share a scale: the whole tensor, each row, or each tile.

A tensor of any shape is taken as a matrix (rows, columns), rows = all dimensions but the last.  Rows and tiles run
along the contraction dimension of a GEMM, which is the last one or the first.  A granularity is "tensor", "row", or
"AxB": tiles of A values across that dimension and B along it.  A (6, 64) tensor has, with "1x32", 12 tiles along its
last dimension (6 rows x 2) and 64 along its first one (a column of 6 values each, padded with zeros to 32); with
"row", it has 6 scales along the last dimension and 64 along the first.

A tile at the edge is padded with zeros, as hardware does: a zero changes neither an amax nor a sum of products.  If
nothing else depends on its size, a tile is taken in pieces that need no padding, for the same values.  A tile that is
larger than the whole dimension is cut to it: (768, 96) in 1x128 has 768 tiles of 96.  And 288 values in 1x128 are 9
pieces of 32, of which the first four share their amax and scale, the next four, and the last one.
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
_SMALLEST_GROUP = 8  # blocks: their scales fill a vector register
_SMALLEST_PIECE = 16  # values: fewer do not fill a vector register of 64 bytes
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


def split(x: Tensor, granularity: str, last: bool, in_pieces: bool = False) -> Tensor:
    """x reshaped so that the values which share a scale fill whole dimensions; padded with zeros to full tiles.

    tensor: x.  row: x, or (rows, columns) for rows along the first dimension.  1 x B along the last: (..., tiles, B).
    Other tiles: (row tiles, rows, column tiles, columns).  `in_pieces`: with pieces in place of tiles that do not fill
    a dimension, if these are not too small (see `pieces`).
    """
    tile = tile_of(granularity)
    if tile is None:
        return x if granularity == "tensor" or last else x.reshape(-1, x.shape[-1])
    across, along = tile
    if across == 1 and last:
        along = _piece(x.shape[-1], along, in_pieces)
        return _padded(x, 0, -x.shape[-1] % along).unflatten(-1, (-1, along))
    matrix = x.reshape(-1, x.shape[-1])
    sides = (across, along) if last else (along, across)
    rows, columns = (_piece(size, side, in_pieces) for size, side in zip(matrix.shape, sides, strict=True))
    matrix = _padded(matrix, -matrix.shape[0] % rows, -matrix.shape[1] % columns)
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)


def pieces(x: Tensor, granularity: str, last: bool, in_pieces: bool) -> tuple[int, int]:
    """Into how many pieces each `split` divides the rows and the columns of a tile; (1, 1) if none."""
    tile = tile_of(granularity)
    if tile is None:
        return 1, 1
    columns = x.shape[-1]
    sides = tile if last else tile[::-1]
    rows, across = (
        side // _piece(size, side, in_pieces) if size > side else 1
        for size, side in zip((x.numel() // columns, columns), sides, strict=True)
    )
    return rows, across


def _piece(size: int, side: int, in_pieces: bool) -> int:
    """How many of `size` values along a dimension are taken at a time, of tiles of `side` values."""
    common = size if size <= side else math.gcd(size, side)
    return common if in_pieces and (size <= side or common >= _SMALLEST_PIECE) else side


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """x with so many more rows and columns of zeros; stored on a CPU, where Inductor otherwise compiles a branch on
    the position into every use of a value, 17 of them in one rounding."""
    if not rows and not columns:
        return x
    padded = functional.pad(x, (0, columns, 0, rows) if rows else (0, columns))
    return materialised(padded) if x.device.type == "cpu" else padded


def join(values: Tensor, like: Tensor, granularity: str, last: bool) -> Tensor:
    """Undo `split`: back to the shape of `like`, without the padding."""
    tile = tile_of(granularity)
    if tile is None:
        return values.reshape(like.shape)
    columns = like.shape[-1]
    if tile[0] == 1 and last:
        return values.reshape(*like.shape[:-1], -1)[..., :columns]
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
    of_tile: tuple[int, int] = (1, 1),
    of_rows: bool = False,
) -> Tensor:
    """Largest finite magnitude of each scale's values; 0 if none is finite.

    `values`: as `split` returns them; the reduced dimensions stay, with size 1; the result is 0-d for "tensor".
    `of_tile`: what `pieces` returns; each piece of a tile then gets the amax of the tile.
    `infinity`: a tensor that `in_groups` made, or the number.  `rows`: so many rows of a tile are compared first, in
    one pass along them.  `by_columns`: on a GPU, of "tensor": the amax of each column first, instead of each row.
    `of_rows`: on a GPU, of "tensor": the amax of each row, (..., 1), to be reduced with the counts.
    """
    tile = tile_of(granularity)
    if tile is not None and tile[0] == 1 and last:  # a short row of integers is slow to reduce
        magnitude = values.abs()
        amax = torch.where(magnitude < infinity, magnitude, 0.0).amax(dim=-1, keepdim=True)
        return _of_tiles(amax, -2, of_tile[1])
    # The bits of magnitudes, as integers, have the order of their values.  Adding 1 to the exponent field overflows
    # into the sign for inf and NaN, whose field is 255: they become negative and never win the maximum.
    bits = (values.view(torch.int32) & _MAGNITUDE) + _NEXT_EXPONENT
    if rows > 1:
        bits = materialised(functools.reduce(torch.maximum, interleaved(bits, rows)))
    if granularity == "tensor":
        if bits.device.type == "cpu":
            largest = bits.amax()
        elif of_rows:
            largest = bits.amax(dim=-1, keepdim=True)
        else:  # in two stages, of which the first may be part of the kernel that computes the values
            largest = (
                bits.flatten(0, -2).amax(dim=0).amax() if by_columns and bits.ndim > 1 else bits.amax(dim=-1).amax()
            )
    else:
        largest = bits.amax(dim=(1, 3) if tile else (-1 if last else 0), keepdim=True)
    amax = (largest.clamp(min=_NEXT_EXPONENT) - _NEXT_EXPONENT).view(torch.float32)
    return _of_tiles(_of_tiles(amax, 0, of_tile[0]), 2, of_tile[1]) if tile else amax


def _of_tiles(amax: Tensor, dimension: int, together: int) -> Tensor:
    """The largest of each `together` amaxes along a dimension, in place of each of them."""
    if together == 1:
        return amax
    amax = amax.transpose(dimension, -1)
    count = amax.shape[-1]
    tiles = materialised(functional.pad(amax, (0, -count % together)).contiguous()).unflatten(-1, (-1, together))
    shared = materialised(tiles.amax(dim=-1, keepdim=True)).expand(tiles.shape).flatten(-2)[..., :count]
    return materialised(shared.transpose(dimension, -1).contiguous())


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
    return math.gcd(values.shape[1], _COMPARED_ROWS), math.gcd(values.shape[1], _ROUNDED_ROWS)


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
    group = largest_divisor(blocks.numel() // along, GROUP_VALUES // along)
    if group < _SMALLEST_GROUP:
        return blocks, fmt
    per_block = {
        name: materialised(getattr(fmt, name).repeat(group, 1)) for name in ("min_normal_bits", "max", "infinity")
    }
    return blocks.reshape(-1, group, along), fmt._replace(**per_block)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`; at least 1."""
    return next(step for step in range(min(number, max(limit, 1)), 0, -1) if number % step == 0)
