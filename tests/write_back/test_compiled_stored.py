"""Moments and stored weights are rounded by compiled code as they are eagerly: bit for bit, and in few graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from altgrad import torch_private
from altgrad.config.recipe import Recipe
from altgrad.quantization.kernel import compiled
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.training.compile.policy import stored_saves
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL

pytestmark = [pytest.mark.compiled, pytest.mark.long]

MOMENTS = ("exp_avg", "exp_avg_sq")
ROW = {"format": "E4M3", "block": "1x128", "scale_rule": "real", "scale_format": "FP32"}
RECIPES: dict[str, dict[str, Any]] = {
    "moments in BF16": {"first_moment": {"format": "BF16"}, "second_moment": {"format": "BF16"}},
    "moments in tiles": {"first_moment": ROW, "second_moment": ROW | {"range_expansion": True}},
    "moments, stochastic": {"second_moment": {"format": "E5M2", "rounding": "stochastic"}},
    "stored": {"format": "E4M3", "master_weights": False},
    "stored, in rows": {"format": "E7M0", "master_weights": False, "scale_granularity": "row"},
    "stored, in tiles": {"format": "E2M1", "master_weights": False, "scale_granularity": "1x32"},
    "stored, stochastic": {"format": "E3M4", "master_weights": False, "update_rounding": "stochastic"},
    "stored, kahan": {"format": "E5M2", "master_weights": False, "update_rounding": "kahan"},
    "stored, eco": {"format": "E4M3", "master_weights": False, "update_rounding": "eco"},
}


def trained(recipe: dict[str, Any], compile_stored: bool) -> tuple[QuantizedModel, AdamW]:
    """Three steps of a perceptron with a square and a narrow weight, whose values span many binades."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 10))
    quantized = quantize_model(model, Recipe(**recipe))
    optimizer = AdamW(model.parameters(), lr=1e-2)
    quantized.compile_stored(compile_stored)
    for step in range(1, 4):
        quantized.begin_step(3, step)
        optimizer.zero_grad()
        (model(torch.randn(32, 96)) * torch.logspace(-6, 6, 10)).square().mean().backward()
        optimizer.step()
        quantized.after_optimizer(optimizer)
    return quantized, optimizer


@pytest.mark.parametrize("name", RECIPES)
def test_compiled_and_eager_store_the_same_bits(name: str) -> None:
    (eager, plain), (fast, stepped) = (trained(RECIPES[name], how) for how in (False, True))
    for mine, theirs in zip(eager.model.parameters(), fast.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for moment in MOMENTS:
            assert torch.equal(plain.state[mine][moment], stepped.state[theirs][moment])
    for layer, lacking in eager.compensations().items():
        assert torch.equal(lacking, fast.compensations()[layer]) and (lacking != 0).any()
    if eager.write_back is not None and fast.write_back is not None:
        for layer, correction in eager.write_back.corrections.items():
            assert torch.equal(correction, fast.write_back.corrections[layer])
            torch.testing.assert_close(eager.write_back.counts[layer], fast.write_back.counts[layer], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "most"), [("moments in BF16", 2), ("stored", 1)])
def test_one_scale_per_tensor_takes_one_graph_for_all_sizes(name: str, most: int) -> None:
    """Moments: one graph for a stack of several, and one for a moment that fills a pass by itself."""
    for graphs in (compiled._graph_of_each, compiled._graph_of_stored):
        graphs.cache_clear()
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    trained(RECIPES[name], compile_stored=True)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= most


def test_where_the_compiler_fails_training_goes_on_eagerly_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failure(torch_private.compiler_failure()):  # type: ignore[misc]
        def __init__(self) -> None:
            Exception.__init__(self, "no room on the disk")

    def fails(*given: Any) -> Any:
        raise Failure

    eager, _ = trained(RECIPES["stored"], compile_stored=False)
    monkeypatch.setattr(compiled, "_graph_of_stored", lambda mode, shape: fails)
    monkeypatch.setattr(compiled, "_failed", set())
    with pytest.warns(UserWarning, match="the compiler failed") as said:
        kept, _ = trained(RECIPES["stored"], compile_stored=True)
    assert len(said) == 1
    assert all(torch.equal(a, b) for a, b in zip(eager.model.parameters(), kept.model.parameters(), strict=True))


def test_a_long_run_compiles_what_it_stores_and_a_short_one_does_not() -> None:
    assert stored_saves(52_000_000, 500) and not stored_saves(1_600_000, 500)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    stored = quantize_model(model, Recipe(master_weights=False, first_moment={"format": "BF16"}))
    assert stored.values_stored() == 2 * (8 * 4 + 4 * 2)
    assert quantize_model(nn.Linear(8, 4), Recipe()).values_stored() == 0


@pytest.mark.parametrize(("asked", "steps", "expected"), [(True, 4, True), (False, 10**9, False), ("auto", 4, False)])
def test_the_trainer_compiles_what_it_stores_where_its_step_is_compiled(
    asked: bool | str, steps: int, expected: bool
) -> None:
    fields: dict[str, Any] = {"first_moment": {"format": "BF16"}, "master_weights": False}
    quantized = Trainer(SMALL.altered(compile=asked, max_steps=steps, **fields)).quantized
    assert quantized.write_back is not None and quantized._states is not None
    assert quantized.write_back.compiled is quantized._states.compiled is expected
    quantized.set_recipe(Recipe(format="E5M2", **fields))
    assert quantized.write_back.compiled is quantized._states.compiled is expected
