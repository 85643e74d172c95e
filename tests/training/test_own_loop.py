"""A training loop of one's own is the trainer: with several uses, micro batches, recomputation, other dtypes."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.quantize import quantize_model
from altgrad.training.data import TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer, learning_rate
from altgrad.training.trainer import Trainer
from tests.references.two_layers import IN, inputs, plain, rounded

pytestmark = pytest.mark.long

AMAX = COUNTERS.index("amax")

SETTINGS = {"model": "micro", "batch_size": 2, "max_steps": 6, "compile": False, "threads": 1, "warmup_steps": 1}

COMBINATIONS = list(
    itertools.product((True, False), ("nearest", "stochastic"), ("dynamic", "delayed"), ("nearest", "stochastic"))
)


@pytest.mark.parametrize(("masters", "update", "scaling", "rounding"), COMBINATIONS)
def test_a_loop_of_ones_own_is_the_trainer_bit_for_bit(masters, update, scaling, rounding):
    config = TrainConfig(
        **SETTINGS,
        format="E4M3",
        gradient_format="E5M2",
        learning_rate=3e-3,
        master_weights=masters,
        update_rounding=update,
        scaling=scaling,
        rounding=rounding,
        amax_history=2,
    )
    trainer = Trainer(config)
    batches = TextBatches(load_corpus(config), config, config.shape.block_size)
    model = build_gpt(config, 256)
    quantized = quantize_model(model, config)
    optimizer = build_optimizer(model, config)
    for step in range(1, 7):
        if step == 4:  # from a file, into another object
            kept = [part.state_dict() for part in (model, quantized, optimizer)]
            kept = copy.deepcopy(kept)
            model = build_gpt(config, 256)
            quantized = quantize_model(model, config)
            optimizer = build_optimizer(model, config)
            for part, state in zip((model, quantized, optimizer), kept, strict=True):
                part.load_state_dict(state)
        quantized.begin_step(config.seed, step)
        loss = model(*batches.training(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        quantized.after_optimizer()
        assert trainer.step().record["loss"] == loss.item()
    theirs = trainer.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    ours = quantized.histories()
    assert all(torch.equal(history, ours[name]) for name, history in trainer.quantized.histories().items())


class Twice(nn.Module):
    """One layer used `uses` times."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.uses = uses
        self.layer = nn.Linear(16, 16, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for use in range(self.uses):
            x = (1.0 + 5 * use) * self.layer(x)
        return x


@pytest.mark.parametrize(
    ("uses", "micro_batches", "compiled"), [(1, 1, False), (3, 1, False), (1, 3, False), (3, 2, False), (3, 2, True)]
)
def test_the_gradient_amax_of_several_uses_and_micro_batches_is_the_largest(uses, micro_batches, compiled):
    torch.manual_seed(0)
    model = Twice(uses)
    quantized = quantize_model(model, Recipe(format="E4M3", scaling="delayed"))
    layer, seen = quantized.layers["layer"], []
    function = model
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        function = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)
    reference = copy.deepcopy(model)  # eager, with hooks
    reference.layer.register_forward_hook(
        lambda module, x, y: y.register_hook(lambda dy: seen.append(float(dy.abs().max()))) and None
    )
    for step in (1, 2):
        seen.clear()
        for micro in range(micro_batches):
            x = inputs(8, 16) * 2.0 ** (3 if micro == 1 else micro)
            weight = 100.0 if micro == 0 else 1.0
            quantized.begin_step(0, step, micro_batch=micro)
            (weight * function(x)).sum().backward()
            (weight * reference(x)).sum().backward()
        counts = quantized.counts()["layer", "gradient"]
        assert counts[AMAX] == max(seen)
        assert counts[COUNTERS.index("uses")] == uses * micro_batches
        quantized.after_optimizer()
        remembered = reference.layer.site("gradient").history
        remembered.copy_(torch.cat([torch.tensor([max(seen)]), remembered[:-1]]))
        reference.layer.site("activation").history.copy_(layer.site("activation").history)
        assert layer.site("gradient").history[0] == max(seen)
    if compiled:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def noise(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What rounding added to the output of a layer whose weight is the identity."""
    return (layer(x) - x).detach().flatten()


def test_micro_batches_uses_validation_batches_and_write_backs_draw_independent_noise():
    size = 256
    model = nn.Sequential(nn.Linear(size, size, bias=False, dtype=torch.float32))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(size))
    quantized = quantize_model(model, Recipe(format="E4M3", scaling="none", rounding="stochastic"))
    layer, x = quantized.layers["0"], inputs(256, size)
    drawn = []
    for micro in range(3):
        quantized.begin_step(5, 9, micro_batch=micro)
        drawn += [noise(layer, x) for _ in range(3)]
    for batch in range(2):
        quantized.begin_validation(5, 9, batch)
        drawn.append(noise(layer, x))
    limit = 5 / math.sqrt(x.numel())
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < limit
    quantized.begin_step(5, 9)
    assert torch.equal(noise(layer, x), drawn[0])

    stored = quantize_model(
        nn.Sequential(nn.Linear(size, size, bias=False, dtype=torch.float32)),
        Recipe(format="E4M3", master_weights=False, update_rounding="stochastic"),
    )
    stored.begin_step(1, 1)
    found = []
    for _ in range(3):
        with torch.no_grad():
            stored.layers["0"].weight.copy_(inputs(size, size))
        stored.write_back()
        found.append((stored.layers["0"].weight.detach() - inputs(size, size)).flatten())
    assert torch.corrcoef(torch.stack(found)).fill_diagonal_(0).abs().max() < limit


def test_checkpointed_activations_are_recomputed_with_the_noise_of_the_forward_pass():
    quantized = rounded(rounding="stochastic")
    x = inputs(5, IN)
    gradients = []
    for recomputed in (False, True):
        quantized.begin_step(1, 1)
        quantized.model.zero_grad()
        y = torch.utils.checkpoint.checkpoint(quantized.model, x, use_reentrant=False) if recomputed else None
        (quantized.model(x) if y is None else y).square().sum().backward()
        gradients.append([p.grad.clone() for p in quantized.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


STEPS = {"begin_step": {"rounding": "stochastic"}, "after_optimizer": {"master_weights": False}}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("call", STEPS)
def test_a_loop_that_forgets_a_call_is_told_once_and_one_that_does_not_is_left_alone(call, fused):
    for forgetful in (True, False):
        quantized = rounded(**STEPS[call])
        optimizer = torch.optim.AdamW(quantized.model.parameters(), fused=fused)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(4):
                if not (forgetful and call == "begin_step"):
                    quantized.begin_step(0, step)
                optimizer.zero_grad()
                quantized.model(inputs(3, IN)).sum().backward()
                optimizer.step()
                if not (forgetful and call == "after_optimizer"):
                    quantized.after_optimizer()
        assert [f"quantized.{call}(" in str(warning.message) for warning in said] == [True] * forgetful


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_narrow_and_wide_models_train_without_masters_on_their_grid_or_are_refused(dtype):
    model = plain().to(dtype)
    quantized = quantize_model(model, Recipe(format="E4M3", master_weights=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        quantized.begin_step(0, step)
        model(inputs(4, IN).to(dtype)).square().sum().backward()
        optimizer.step()
        quantized.after_optimizer()
        for layer in quantized.layers.values():
            assert layer.weight.dtype == dtype
            scaled = layer.weight.detach().float() * layer.rounded_weight_and_scale()[2]
            assert np.array_equal(scaled.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32), scaled.numpy())
    wide = {torch.bfloat16: "FP16", torch.float16: "BF16"}.get(dtype)
    if wide is not None:
        with pytest.raises(ValueError, match=rf"^master_weights=False: layer 0 has a weight of {dtype}[^\n]*$"):
            quantize_model(plain().to(dtype), Recipe(format=wide, master_weights=False))


class Dtyped(nn.Module):
    """A regression in a given dtype with part of it frozen in evaluation mode."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(16, dtype=dtype).eval()
        self.body = nn.Sequential(nn.Linear(16, 32, dtype=dtype), nn.Dropout(0.1), nn.Linear(32, 16, dtype=dtype))
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.dtype = dtype

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.scale * self.body(self.norm(x.to(self.dtype))) - y).square().mean()


class Rows:
    vocabulary = None

    def training(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float32)
        return x, x.flip(1)

    def validation(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.training(0), self.training(1)]

    def digest(self) -> str:
        return "rows"


@pytest.mark.parametrize("masters", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_trainer_trains_and_measures_models_of_every_dtype_and_leaves_their_modes_alone(dtype, masters):
    config = TrainConfig(
        format="E4M3", master_weights=masters, max_steps=4, batch_size=4, eval_interval=1, diagnostic_interval=1,
        use_shadow=True, log_ulp=True, log_stiffness=True, log_grid_alignment=True, compile=False, learning_rate=1e-2,
    )  # fmt: skip
    model = Dtyped(dtype)
    trainer = Trainer(config, model, Rows())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(4):
        record = trainer.step().record
        assert all(math.isfinite(value) for value in record.values())
        assert {"stall_rate", "gradient_cosine_similarity", "validation_loss"} <= record.keys()
        assert [module.training for module in (model, model.norm, model.body[1])] == [True, False, True]
    assert all(p.dtype == dtype for p in model.parameters())
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
