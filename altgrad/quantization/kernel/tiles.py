"""Which values share a scale: all, a row each, or a tile each.

A tensor of any shape is taken as a matrix (rows, columns), rows = all dimensions but the last.  Rows and tiles run
along the dimension that a GEMM contracts, the last one or the first.  A granularity is "tensor", "row", or "AxB": tiles
of A values across and B along.  A (6, 64) tensor has, with "1x32", 12 tiles along its last dimension (6 rows x 2) and
64 along its first one (a column of 6 values each, padded with zeros to 32); with "row", 6 and 64 rows.

Padding is what hardware does with a tile at the edge: a zero changes neither an amax nor a sum of products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.quantization.kernel.random import materialised
from altgrad.quantization.kernel.round import FormatTensors

GROUP_VALUES = 2048  # that compiled code takes at a time: 8 KiB, so that what the amax read is in the nearest cache
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
    """x in the shape in which what shares a scale lies in dimensions of its own.

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
    """Largest finite magnitude of what shares a scale; `values` as `split` gives them, kept dimensions of size 1.

    0-d for "tensor".  `infinity` is a tensor after `in_groups`.
    """
    tile = tile_of(granularity)
    if tile is not None and tile[0] == 1 and last:  # vectors of integers are slow to reduce to one number
        magnitude = values.abs()
        return torch.where(magnitude < infinity, magnitude, 0.0).amax(dim=-1, keepdim=True)
    # The bits of magnitudes are ordered like their values; one exponent more makes inf and NaN negative.
    bits = (values.view(torch.int32) & _MAGNITUDE) + _NEXT_EXPONENT
    if granularity == "tensor":
        largest = bits.amax()
    else:
        largest = bits.amax(dim=(1, 3) if tile else (-1 if last else 0), keepdim=True)
    return (largest.clamp(min=_NEXT_EXPONENT) - _NEXT_EXPONENT).view(torch.float32)


def in_groups(blocks: Tensor, fmt: FormatTensors) -> tuple[Tensor, FormatTensors]:
    """Blocks (..., B) as (groups, blocks of a group, B), and the format as a compiler wants it to nest the loops.

    Amax, scale and rounding of a group in one loop over the groups read the data once.  Inductor would merge groups and
    blocks into one dimension, and then make three passes.  What each of the three reads once per block of a group
    prevents that.  Unchanged where the blocks do not fill groups.
    """
    along = blocks.shape[-1]
    group = GROUP_VALUES // along
    if group < 2 or blocks.numel() % (group * along):
        return blocks, fmt
    per_block = {
        name: materialised(getattr(fmt, name).repeat(group, 1)) for name in ("min_normal_bits", "max", "infinity")
    }
    return blocks.reshape(-1, group, along), fmt._replace(**per_block)
