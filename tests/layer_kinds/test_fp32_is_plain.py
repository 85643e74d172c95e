"""A layer in FP32 runs the very operations of the plain one: a reference run pays for no rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.config.recipe import Recipe
from altgrad.formats import FORMATS
from altgrad.quantization.quantize import quantize_model
from altgrad.training.model import build_gpt
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / 5, self.bias)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Parameter(torch.randn(3, 6, 8)), nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(x, self.up_proj, self.down_proj, strict=True)
        return torch.stack([functional.linear(functional.silu(functional.linear(*one)), down) for *one, down in parts])


class First(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module, inputs: int = 1) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[x] * self.inputs)[0]


Made = Callable[[], tuple[nn.Module, tuple[int, ...]]]
MODELS: dict[str, Made] = {
    "linear": lambda: (nn.Sequential(nn.Linear(8, 6), nn.GELU(), Scaled(6, 4)), (2, 3, 8)),
    "convolution": lambda: (nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(6, 2, 1)), (2, 4, 5, 5)),
    "attention": lambda: (Attention(), (2, 5, 8)),
    "multihead": lambda: (First(nn.MultiheadAttention(8, 2, batch_first=True), 3), (2, 5, 8)),
    "lstm": lambda: (First(nn.LSTM(8, 4, 2)), (5, 2, 8)),
    "experts": lambda: (Experts(), (3, 2, 8)),
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Names of the operations that run, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(model: nn.Module, x: Tensor) -> list[str]:
    with Operations() as seen:
        model(x).square().mean().backward()
    return sorted(name for name in seen.names if "detach" not in name)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_fp32_runs_the_operations_of_the_plain_one(name: str, blocks: bool) -> None:
    plain, shape = MODELS[name]()
    model, x = copy.deepcopy(plain), torch.randn(shape)
    granularity: dict[str, Any] = {"scale_granularity": "1x4"} if blocks else {}
    quantized = quantize_model(model, Recipe(format="FP32", attention_gemms=True, **granularity))
    expected = operations(plain, x)
    assert operations(model, x) == expected and quantized.counts() == {}
    for ours, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, other.grad)
    first = next(iter(quantized.layers))
    quantized.layers[first].set_format("weight" if not blocks else "fprop.weight", FORMATS["E4M3"])
    assert len(operations(model, x)) > len(expected) and {layer for layer, _ in quantized.counts()} >= {first}


@pytest.mark.compiled
def test_no_rounding_is_in_the_graph_of_a_run_in_fp32() -> None:
    config = SMALL.altered(format="FP32")
    trainer = Trainer(config)
    batch = trainer.batches.training(1)
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def calls(model: nn.Module) -> list[str]:
        torch._dynamo.reset()
        graphs.clear()
        torch.compile(model, backend=kept, fullgraph=True, dynamic=False)(*batch)
        nested = [part for part in graphs[0].modules() if isinstance(part, torch.fx.GraphModule)]
        called = [str(node.target) for part in nested for node in part.graph.nodes if node.op.startswith("call")]
        return [name for name in called if name not in ("float", "to")]  # of float32 to float32: none of them runs

    plain = build_gpt(config, trainer.batches.vocabulary)
    assert calls(trainer.model) == calls(plain)
    quantize_model(plain, Recipe(format="BF16"))
    assert any("round_site" in call for call in calls(plain))


def test_a_run_in_fp32_has_no_counts_and_its_weights_are_measured() -> None:
    trainer = Trainer(SMALL.altered(format="FP32", diagnostic_interval=1))
    outcome = trainer.step()
    assert "overflow_rate" not in outcome.record and outcome.record["stall_rate"] < 0.1
