"""Layers divided among processes are rounded as in one process: tensor parallelism, and FSDP2 without master weights.

Two real processes, gloo.  Each computes the same model whole as well, as the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from altgrad.config.recipe import Recipe
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from tests.support.processes import spawn_ranks

pytestmark = pytest.mark.long

SIZE = 2
TWO_LEVEL = {"block": "1x4", "scale_format": "E4M3", "scale_rule": "real"}
CASTS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "row": {"scale_granularity": "row"},
    "block": {"scale_granularity": "1x4"},
    "two_level": {"gemms": {"fprop": TWO_LEVEL, "dgrad": TWO_LEVEL}},
    "delayed": {"scaling": "delayed", "amax_history": 2},
}
STORED: dict[str, dict[str, Any]] = {
    "nearest": {},
    "stochastic": {"update_rounding": "stochastic"},
    "kahan": {"update_rounding": "kahan"},
    "eco": {"update_rounding": "eco"},
    "block": {"scale_granularity": "1x4", "block_axis": "last"},
}


def model_of() -> nn.Sequential:
    """Its two halves differ by a factor of 32, so that a scale of one half is no scale of the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    with torch.no_grad():
        model[0].weight[:8] *= 32
        model[2].weight[:, :8] *= 32
    return model


def parallel(model: nn.Sequential) -> nn.Sequential:
    mesh = init_device_mesh("cpu", (SIZE,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def passed(model: nn.Module, quantized: QuantizedModel) -> dict[str, Tensor]:
    """Output and gradients of the second of two steps, and the rounded weights."""
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    found: dict[str, Tensor] = {}
    for step in (1, 2):
        quantized.begin_step(0, step)
        model.zero_grad()
        inputs = (x * step).requires_grad_()
        y = model(inputs)
        y.square().sum().backward()
        quantized.after_optimizer()
        found = {"y": y.detach(), "dx": inputs.grad} | {name: p.grad for name, p in model.named_parameters()}
    whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}
    return whole | {f"rounded {name}": layer.rounded_weight() for name, layer in quantized.layers.items()}


def both(fields: dict[str, Any], first: bool = False, **how: Any) -> list[dict[str, Tensor]]:
    """The tensors of the whole model, and those of the divided one; first: divided before it is quantised."""
    recipe = Recipe(format="E2M3", **fields)
    whole, divided = model_of(), model_of()
    expected = passed(whole, quantize_model(whole, recipe))
    if first:
        parallel(divided)
    quantized = quantize_model(divided, recipe, **how)
    if not first:
        parallel(divided)
    return [expected, passed(divided, quantized)]


def trained(fields: dict[str, Any]) -> list[list[Tensor]]:
    """The stored weights after some steps: of the whole model, cut as FSDP2 does; and of the divided one."""
    recipe = Recipe(format="E3M4", master_weights=False, **fields)
    parts: list[list[Tensor]] = []
    for divided in (False, True):
        model = model_of()
        if divided:
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=init_device_mesh("cpu", (SIZE,)))
        quantized = quantize_model(model, recipe)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
        quantized.attach(optimizer)
        for step in range(1, 6):
            quantized.begin_step(0, step)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        weights = [layer.weight for layer in quantized.layers.values()]
        rank = dist.get_rank()
        parts.append([w.to_local() if divided else w.detach().chunk(SIZE)[rank] for w in weights])
        if divided:
            parts.append([layer.rounded_weight() for layer in quantized.layers.values()])
    return parts


def refused(make: Callable[[], object]) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return ""


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    found: dict[str, Any] = {name: both(fields, first=name == "tensor") for name, fields in CASTS.items()}
    found["own"] = both({}, own_scales=True)
    found["noise"] = both({"rounding": "stochastic"})
    found["stored"] = {name: trained(fields) for name, fields in STORED.items()}
    found["refused"] = [
        refused(lambda: both({"scale_granularity": "1x16"})),
        refused(lambda: trained({"scale_granularity": "16x16"})),
        refused(lambda: trained({"first_moment": {"format": "E4M3"}})),
    ]
    torch.save(found, folder / f"found-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("sharded")
    spawn_ranks(work, SIZE, folder)
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(SIZE)]


@pytest.mark.parametrize("name", CASTS)
def test_column_and_row_parallel_layers_are_the_whole_ones_up_to_the_order_of_sums(name: str, found: Any) -> None:
    for rank, (expected, ours) in enumerate(one[name] for one in found):
        for what, tensor in ours.items():
            wanted = expected[what]
            if what.startswith("rounded"):  # the very codes, of this process's rows or columns
                assert torch.equal(tensor, wanted.chunk(SIZE, 0 if what.endswith("0") else 1)[rank]), what
            else:
                assert torch.allclose(tensor, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max())), what


def test_parts_have_scales_of_their_own_if_so_chosen(found: Any) -> None:
    expected, ours = found[1]["own"]
    assert not torch.equal(ours["rounded 0"], expected["rounded 0"].chunk(SIZE)[1])
    assert not torch.allclose(ours["y"], expected["y"], rtol=1e-3)


def test_parts_draw_different_numbers_and_those_of_rows_are_the_whole_s(found: Any) -> None:
    for rank, (expected, ours) in enumerate(one["noise"] for one in found):
        assert torch.equal(ours["rounded 0"], expected["rounded 0"].chunk(SIZE)[rank])
    first, second = (one["noise"][1]["y"] for one in found)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", STORED)
def test_weights_that_fsdp_divides_are_stored_as_in_one_process(name: str, found: Any) -> None:
    for expected, ours, rounded in (one["stored"][name] for one in found):
        for part, wanted, again in zip(ours, expected, rounded, strict=True):
            assert torch.equal(part, wanted) and torch.equal(part, again)


def test_what_cannot_be_divided_is_refused_in_one_line(found: Any) -> None:
    for words in (one["refused"] for one in found):
        assert "whose blocks have 16" in words[0] and "whose blocks have 16" in words[1]
        assert words[2] == "first_moment: moments of parameters that are divided among processes stay FP32"
        assert all("\n" not in line for line in words)
