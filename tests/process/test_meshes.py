"""Meshes of two dimensions, four real gloo processes: what works is as in one process, the rest is one line in each.

All processes get the same rows, so that means over processes are exact and every number can be compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from tests.support.processes import spawn_ranks

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]  # four processes that import torch

SIZE = 4
MASTER = Recipe(format="E4M3")
STORED = Recipe(format="E4M3", master_weights=False, update_rounding="stochastic")
Divide = Callable[[nn.Sequential, DeviceMesh], object]


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


def tensor_parallel(model: nn.Sequential, mesh: DeviceMesh) -> None:
    parallelize_module(model, mesh["inner"], {"0": ColwiseParallel(), "2": RowwiseParallel()})


def hybrid(model: nn.Sequential, mesh: DeviceMesh) -> None:
    """Replicated over the outer dimension, sharded over the inner one."""
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)


def both(model: nn.Sequential, mesh: DeviceMesh) -> None:
    tensor_parallel(model, mesh)
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh["outer"])


def losses(recipe: Recipe, divide: Divide | None, mesh: DeviceMesh, share: bool) -> list[float] | str:
    """Those of some steps, or why they are refused."""
    model = model_of()
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    found: list[float] = []
    try:
        if divide is not None:
            divide(model, mesh)
        quantized = quantize_model(model, recipe)
        if share:
            quantized.share()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        quantized.attach(optimizer)
        for step in range(1, 5):
            quantized.begin_step(0, step, rank=dist.get_rank() if share else 0)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    except ValueError as error:
        return str(error)
    return found


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    found: dict[str, Any] = {
        "whole": losses(MASTER, None, mesh, False),
        "whole stored": losses(STORED, None, mesh, False),
        "hybrid": losses(MASTER, hybrid, mesh, True),
        "hybrid stored": losses(STORED, hybrid, mesh, True),
        "tensor": losses(MASTER, tensor_parallel, mesh, False),
        "tensor shared": losses(MASTER, tensor_parallel, mesh, True),
        "both": losses(MASTER, both, mesh, False),
        "both shared": losses(MASTER, both, mesh, True),
        "both stored": losses(STORED, both, mesh, False),
    }
    torch.save(found, folder / f"found-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("meshes")
    spawn_ranks(work, SIZE, folder)
    return [torch.load(folder / f"found-{rank}") for rank in range(SIZE)]


def test_weights_sharded_and_replicated_are_rounded_as_in_one_process(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["hybrid"] == one["whole"] and one["hybrid stored"] == one["whole stored"]


def test_tensor_parallel_groups_beside_each_other_are_whole_ones_up_to_the_order_of_sums(
    found: list[dict[str, Any]],
) -> None:
    for one in found:
        for name in ("tensor", "both"):
            assert one[name] == pytest.approx(one["whole"], rel=1e-5), name


def test_what_is_not_supported_is_one_line_in_every_process(found: list[dict[str, Any]]) -> None:
    for name, said in (
        ("tensor shared", "its weight is divided among processes, which cannot share() a batch too"),
        ("both shared", "its weight is divided among processes, which cannot share() a batch too"),
        ("both stored", "may be divided along one dimension of a mesh"),
    ):
        for one in found:
            assert isinstance(one[name], str) and said in one[name] and "\n" not in one[name], (name, one[name])
