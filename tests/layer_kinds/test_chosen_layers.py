"""What of a model is rounded by choice, parametrised and sharded layers, and what is said about it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

from altgrad.compare.comparison_table import comparison_markdown, coverage_note
from altgrad.config.recipe import Recipe
from altgrad.quantization.adapters.filters import lora_adapters, lora_base
from altgrad.quantization.adapters.registry import register_gemm
from altgrad.quantization.coverage import Coverage, LeftOut
from altgrad.quantization.quantize import quantize_model
from tests.support.results.written_runs import row
from tests.support.rounding.gemm_reference import reference_linear

E2M3 = Recipe(format="E2M3")


def test_a_filter_leaves_modules_plain_and_the_coverage_names_it() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(16, 4))
    quantized = quantize_model(
        model, E2M3, filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "3"
    )
    assert list(quantized.layers) == ["0"] and quantized.left_out == {"1": "filter_fn", "3": "filter_fn"}
    assert type(model[3]) is nn.Linear and type(model[1]) is nn.Conv1d
    x = torch.randn(2, 1, 4)
    small = nn.Sequential(nn.Linear(4, 8), nn.Flatten(), nn.Linear(8, 4))
    found = quantize_model(small, E2M3, filter_fn=lambda module, name: name == "0")
    coverage = found.coverage(lambda: small(x).sum())
    assert coverage is not None and coverage.uncovered == ()
    (left,) = coverage.modules
    assert (left.module, left.reason, left.flops) == ("2", "filter_fn", 3 * 2 * 2 * 8 * 4)
    assert "<td>2</td><td>Linear</td>" in coverage._repr_html_() and "filter_fn" in coverage._repr_html_()
    attention = nn.Sequential(nn.MultiheadAttention(4, 1), nn.Linear(4, 4))
    kept = quantize_model(attention, E2M3, filter_fn=lambda module, name: name != "0").left_out
    assert list(kept) == ["0", "0.out_proj"]  # the plain module multiplies by the weight of the projection itself


class LoraLinear(nn.Module):
    """Named as peft names it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 6)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_of_lora_base_adapters_or_both_are_rounded() -> None:
    names = {
        chosen: list(quantize_model(nn.Sequential(LoraLinear()), E2M3, filter_fn=chosen).layers)
        for chosen in (None, lora_base, lora_adapters)
    }
    both = ["0.base_layer", "0.lora_A.default", "0.lora_B.default"]
    assert names == {None: both, lora_base: both[:1], lora_adapters: both[1:]}


def test_a_parametrised_weight_is_rounded_as_it_is_computed_and_cannot_be_stored() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), nn.Conv1d(3, 3, 1))
    model[1] = parametrizations.weight_norm(model[1])
    plain = copy.deepcopy(model[0])
    keys = list(model.state_dict())
    quantized = quantize_model(model, E2M3)
    assert list(quantized.layers) == ["0", "1"] and list(model.state_dict()) == keys
    x, dy = torch.randn(3, 6), torch.randn(3, 4)
    model[0](x).backward(dy)
    weight = plain.weight
    y = reference_linear(x.double(), weight.double(), plain.bias.double())
    y.backward(dy.double())
    for ours, expected in zip(model[0].parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, expected.grad, atol=1e-6)
    assert quantized.layers["0"].weight_gradient is None
    with pytest.raises(ValueError, match="layer 0 computes its weight from other parameters"):
        quantize_model(model, Recipe(format="E2M3", master_weights=False))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_layer_that_was_sharded_before_is_rounded(alone: None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    model = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    assert list(quantize_model(model, E2M3).layers) == ["0", "2"]
    quantize_model(plain, E2M3)
    x = torch.randn(3, 6)
    for module in (model, plain):
        module(x).sum().backward()
    assert torch.equal(model(x), plain(x))
    for sharded, whole in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(sharded.grad.full_tensor(), whole.grad)


def test_a_registered_kind_must_have_an_adapter() -> None:
    with pytest.raises(TypeError, match="is no subclass of RoundedModule"):
        register_gemm(nn.Bilinear, nn.Linear)  # type: ignore[arg-type]


def test_runs_of_different_coverage_are_told_so() -> None:
    alike = [row(0, rounded_share=0.96), row(1, rounded_share=0.961), row(2)]
    assert coverage_note(alike) is None and "differ in how much" not in comparison_markdown(alike)
    unlike = [row(0, run="a", rounded_share=0.1), row(1, run="b", rounded_share=0.96), row(2, run="c")]
    note = coverage_note(unlike)
    assert note is not None and "10.0% of the GEMM FLOPs in a, 96.0% in b" in note
    assert note in comparison_markdown(unlike)


def test_what_is_left_out_by_choice_is_not_uncovered() -> None:
    parts = (
        LeftOut("h.0", "Attention", 5, "product of two activations"),
        LeftOut("own", "ByHand", 3, "no kind of layer that is rounded"),
    )
    coverage = Coverage(20, 2, parts)
    assert coverage.uncovered == parts[1:]
    assert coverage.sentence().startswith("Warning: only 10.0%")
    assert coverage.sentence(warned=False).startswith("10.0%")
