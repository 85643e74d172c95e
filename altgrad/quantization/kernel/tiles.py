"""Which values share a scale: the whole tensor, each row, or each tile.

A tensor of any shape is taken as a matrix (rows, columns), rows = all dimensions but the last.  Rows and tiles run
along the contraction dimension of a GEMM, which is the last one or the first.  A granularity is "tensor", "row", or
"AxB": tiles of A values across that dimension and B along it.  A (6, 64) tensor has, with "1x32", 12 tiles along its
last dimension (6 rows x 2) and 64 along its first one (a column of 6 values each, padded with zeros to 32); with
"row", it has 6 scales along the last dimension and 64 along the first.

A tile at the edge is padded with zeros, as hardware does: a zero changes neither an amax nor a sum of products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.quantization.kernel.random import materialised
from altgrad.quantization.kernel.round import FormatTensors

GROUP_VALUES = 2048  # values that compiled code takes at a time: 8 KiB, which the L1 cache keeps until they are rounded
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


def finite_amax(values: Tensor, granularity: str, last: bool, infinity: Tensor | float = torch.inf) -> Tensor:
    """Largest finite magnitude of each scale's values; 0 if none is finite.

    `values`: as `split` returns them; the reduced dimensions stay, with size 1; the result is 0-d for "tensor".
    `infinity`: a tensor that `in_groups` made, or the number.
    """
    tile = tile_of(granularity)
    if tile is not None and tile[0] == 1 and last:  # a short row of integers is slow to reduce
        magnitude = values.abs()
        return torch.where(magnitude < infinity, magnitude, 0.0).amax(dim=-1, keepdim=True)
    # The bits of magnitudes, as integers, have the order of their values.  Adding 1 to the exponent field overflows
    # into the sign for inf and NaN, whose field is 255: they become negative and never win the maximum.
    bits = (values.view(torch.int32) & _MAGNITUDE) + _NEXT_EXPONENT
    if granularity == "tensor":
        largest = bits.amax() if bits.device.type == "cpu" else bits.amax(dim=-1).amax()
    else:
        largest = bits.amax(dim=(1, 3) if tile else (-1 if last else 0), keepdim=True)
    return (largest.clamp(min=_NEXT_EXPONENT) - _NEXT_EXPONENT).view(torch.float32)


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
