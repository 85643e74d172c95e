"""Operands of which each of several processes holds a part, as DTensors.

Tensor parallelism cuts the weight W (out, in) of a linear layer along its outputs (`ColwiseParallel`) or along its
inputs (`RowwiseParallel`), and with it one of the activations:

    outputs:  y[:, part] = x W[part]^T        dx = sum over processes of dy[:, part] W[part]
    inputs:   y = sum over processes of x[:, part] W[:, part]^T

FSDP2 gathers a weight for the forward and backward pass, and cuts it along its first dimension in between, where a
weight without master is rounded.  Each process rounds its own part.  A scale that covers values of several processes
is chosen from the amax of all of them, so that values and codes are those of one process that holds the whole tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from altgrad.config.cast import GemmSite
from altgrad.quantization.kernel.scaled_rounding import Mode
from altgrad.quantization.kernel.tiles import tile_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_ORDINARY = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; their module, whose import takes a second, is asked only if need be."""
    if type(tensor) in _ORDINARY:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, on the same memory and without its graph; of a whole tensor the tensor."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return part


class Cut(NamedTuple):
    """How a matrix is divided among the processes of a group: into rows, or into columns."""

    group: str  # its name
    place: int  # of this process within it
    columns: bool
    size: int  # rows or columns of each process; of the last one, what is left
    own_scales: bool = False  # each process chooses the scale of its part

    def applied(self, mode: Mode, layer: str) -> Mode:
        """The mode of the part.  Raises ValueError if a tile, or a block of a rotation, lies on two processes."""
        tile, along = tile_of(mode.granularity), mode.last == self.columns
        least = 1 if tile is None else tile[1] if along else tile[0]
        least = max(least, mode.hadamard if along else 1)
        if self.size % least:
            what = "columns" if self.columns else "rows"
            raise ValueError(
                f"layer {layer}: a process holds {self.size} {what} of an operand whose blocks have {least}; divide it "
                "at whole blocks, or use scale_granularity=tensor"
            )
        if mode.shared:
            raise ValueError(f"layer {layer}: its weight is divided among processes, which cannot share() a batch too")
        return mode._replace(shared=True, group=self.group, columns=self.columns, own_scales=self.own_scales)

    def placed(self, key: Tensor) -> Tensor:
        """The key of random numbers, (3,), with the place of this process: other parts draw other numbers."""
        return torch.cat([key[:2], key.new_full((1,), self.place)])


class LocalProduct(NamedTuple):
    """This process's part of a product, and the cuts of its operands' tensors; see `joined`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    cuts: Mapping[GemmSite, Cut]
    outputs: bool  # whether the outputs are divided, and not the sums

    def joined(self, y: Tensor, weight: DTensor, bias: Tensor | None) -> Tensor:
        """The product as a DTensor, from this process's part y (..., out)."""
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        mesh = weight.device_mesh
        if self.outputs:
            return DTensor.from_local(y, mesh, [Shard(y.ndim - 1)], run_check=False)
        found = DTensor.from_local(y, mesh, [Partial()], run_check=False)
        return found if bias is None else found.redistribute(placements=[Replicate()]) + bias


def local_product(layer: str, x: Tensor, weight: DTensor, bias: Tensor | None, own_scales: bool) -> LocalProduct:
    """The part of x W^T + b that this process computes; x (..., in), weight (out, in), as the plans of torch lay them.

    Raises ValueError for another layout, or a mesh of several dimensions.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh, laid = weight.device_mesh, weight.placements
    last = Shard(x.ndim - 1)
    if (
        not isinstance(x, DTensor)
        or mesh.ndim != 1
        or (laid[0], x.placements[0])
        not in (
            (Shard(0), Replicate()),
            (Shard(1), last),
        )
    ):
        found = tuple(x.placements) if isinstance(x, DTensor) else "no DTensor"
        raise ValueError(
            f"layer {layer}: a weight {tuple(laid)} with an input {found} on a mesh of {mesh.ndim} dimension(s); "
            "parallelise it by ColwiseParallel or RowwiseParallel over one dimension"
        )
    outputs = laid[0] == Shard(0)
    group, place, size = mesh.get_group().group_name, mesh.get_local_rank(), mesh.size()

    def cut(columns: bool, whole: int) -> Cut:
        return Cut(group, place, columns, -(-whole // size), own_scales)

    local = weight.to_local()
    if not outputs:
        columns = cut(True, x.shape[-1])
        return LocalProduct(x.to_local(), local, None, {"activation": columns, "weight": columns}, False)
    cuts: dict[GemmSite, Cut] = {"weight": cut(False, weight.shape[0]), "gradient": cut(True, weight.shape[0])}
    added = bias.to_local() if isinstance(bias, DTensor) else bias
    return LocalProduct(x.to_local(grad_placements=[Partial()]), local, added, cuts, True)


def cut_at_rest(layer: str, weight: Tensor, dimension_is_columns: Mapping[int, bool | None]) -> Cut | None:
    """How a stored weight is divided; None if this process has whole matrices.

    dimension_is_columns: by dimension of the weight, whether a cut along it gives columns of the matrices that are
    rounded, rows, or (None) whole matrices; a dimension that is absent gives columns.
    Raises ValueError for a weight that is divided in another way.
    """
    if not is_sharded(weight):
        return None
    from torch.distributed.tensor import Replicate, Shard

    sharded: DTensor = weight  # type: ignore[assignment]
    divided = [n for n, laid in enumerate(sharded.placements) if laid != Replicate()]
    if not divided:
        return None
    laid = sharded.placements[divided[0]]
    if len(divided) > 1 or not isinstance(laid, Shard):
        raise ValueError(
            f"master_weights=False: layer {layer} has a weight laid out as {tuple(sharded.placements)}; a stored "
            "weight may be divided along one dimension of a mesh"
        )
    columns = dimension_is_columns.get(laid.dim, True)
    if columns is None:
        return None
    mesh, at = sharded.device_mesh, divided[0]
    size = -(-sharded.shape[laid.dim] // mesh.size(at))
    return Cut(mesh.get_group(at).group_name, mesh.get_local_rank(at), columns, size)
