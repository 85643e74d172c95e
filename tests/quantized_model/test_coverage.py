"""The rounded share of a model's products against numbers worked out by hand, and that measuring it changes nothing."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.quantization.coverage import Coverage, measure_coverage
from altgrad.quantization.quantize import quantize_model
from altgrad.training.model import build_gpt

RECIPE = Recipe(format="E4M3")


def measured(model: nn.Module, *inputs: Tensor) -> Coverage:
    left_out = quantize_model(model, RECIPE).left_out
    found = measure_coverage(model, lambda: model(*inputs).square().mean(), left_out)
    assert found is not None and found.note == ""
    assert found.rounded_flops + sum(one.flops for one in found.modules) == found.total_flops
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_our_gpt_by_formula(tied: bool) -> None:
    """12 d^2 weights a block and V d in the head, 6 FLOPs each and token; attention's products are not rounded."""
    config = TrainConfig(model="micro", format="E4M3", tied_head=tied)
    shape, rows, classes = config.shape, 3, 256
    time, width, blocks = shape.block_size, shape.n_embd, shape.n_layer
    model = build_gpt(config, classes)
    quantize_model(model, config)
    tokens = torch.randint(0, classes, (rows, time))
    found = measure_coverage(model, lambda: model(tokens, tokens))
    assert found is not None
    linear = 6 * rows * time * (12 * blocks * width**2 + classes * width)
    attention = 3 * 4 * rows * time**2 * width * blocks  # Q K^T and P V; twice as much again backward
    assert (found.rounded_flops, found.total_flops) == (linear, linear + attention)
    assert found.attention_flops == attention and found.sentence().endswith(
        "; with attention_gemms: true 100.0% would be"
    )
    quantize_model(model, config.altered(attention_gemms=True))
    whole = measure_coverage(model, lambda: model(tokens, tokens))
    assert whole is not None and whole.share == 1.0 and whole.attention_flops == 0 and "would" not in whole.sentence()
    assert {(one.module, one.reason) for one in found.modules} == {
        (f"h.{i}.attn", "product of two activations") for i in range(blocks)
    }


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round, (in, out), of a kind that is not registered."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.up, self.down = Conv1D(4 * width, width), Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).chunk(3, -1)
        x = x + self.c_proj(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)
        return x + self.down(functional.gelu(self.up(x)))


class GPT2(nn.Module):
    def __init__(self, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(classes, width)
        self.h = nn.ModuleList(Block(width) for _ in range(blocks))
        self.lm_head = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


def test_a_gpt_2_of_conv1d_has_its_head_rounded_alone() -> None:
    rows, time, width, blocks, classes = 2, 16, 32, 2, 64
    found = measured(GPT2(width, blocks, classes), torch.randint(0, classes, (rows, time)))
    head, conv = 6 * rows * time * width * classes, 6 * rows * time * 12 * blocks * width**2
    attention = 3 * 4 * rows * time**2 * width * blocks
    assert (found.rounded_flops, found.total_flops) == (head, head + conv + attention)
    assert found.share is not None and found.share < 0.1 and found.sentence().startswith("Warning: only 7.")
    largest = found.modules[0]
    assert (largest.type, largest.reason) == ("Conv1D", "no kind of layer that is rounded")
    assert [one.flops for one in found.modules] == sorted((one.flops for one in found.modules), reverse=True)


def test_a_convolutional_net_is_counted_by_its_places() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    found = measured(model, torch.randn(2, 3, 8, 8))
    # 36 and 16 places; the first layer's input has no gradient
    first, second = 2 * 2 * 36 * 8 * 27, 2 * 2 * 16 * 4 * 72
    assert (found.share, found.total_flops) == (1.0, 2 * first + 3 * second)
    assert found.sentence() == "100.0% of the GEMM FLOPs are rounded"
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    without = measure_coverage(plain, lambda: plain(torch.randn(2, 3, 8, 8)).square().mean())
    assert without is not None and (without.share, without.total_flops) == (0.0, found.total_flops)
    assert {one.reason for one in without.modules} == {"convolution"}
    assert without.sentence().startswith("Warning: only 0.0%")


def test_of_multihead_attention_the_products_of_activations_are_left_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    found = measured(Model(), torch.randn(5, 3, 16))
    inside = 2 * (2 * 15 * 16 * 48) + 3 * (2 * 15 * 16 * 16)  # the input has no gradient
    assert found.rounded_flops == inside + 6 * 15 * 16 * 4
    products = 3 * 4 * 5 * 3 * 3 * 16
    assert {one.reason: one.flops for one in found.modules} == {"product of two activations": products}
    assert found.attention_flops == products


@pytest.mark.parametrize("masked", [False, True])
def test_what_attention_gemms_would_round_is_said_before(masked: bool) -> None:
    """A call of the kernel counts where the field finds it, in a class of attention; with a mask it is two products."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q = self.inside(x).unflatten(-1, (2, 8)).transpose(1, 2)
            mask = torch.zeros(5, 5, requires_grad=True) if masked else None
            return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).transpose(1, 2).flatten(-2)

    class OwnAttention(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * (x @ x.transpose(1, 2)).mean()  # a product by hand, which no field rounds

    of_attention = 3 * 4 * 3 * 5 * 5 * 16
    for kind, expected in ((Plain, 0), (OwnAttention, of_attention)):
        model, x = kind(), torch.randn(3, 5, 16)
        assert measured(model, x).attention_flops == expected
        quantized = quantize_model(model, Recipe(format="E4M3", attention_gemms=True))
        whole = quantized.coverage(lambda: model(x).square().mean())  # noqa: B023
        assert whole is not None and whole.rounded_flops == measured(model, x).rounded_flops + expected
        again = measured(Repeated(model), x)  # one or both products again, within the backward pass
        assert expected * 7 / 6 <= again.attention_flops <= expected * 8 / 6


class Repeated(nn.Module):
    """A model that keeps nothing of its forward pass."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inside, x, use_reentrant=False)


def test_a_recurrent_layer_is_counted_by_its_weights() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.out = nn.LSTM(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.recurrent(x)[0])

    found = measured(Model(), torch.randn(5, 3, 8))
    # forward 64 x 24 weights for 15 inputs; backward as much for the weights, and 64 x 16 for all states but the first
    forward, weights = 2 * 15 * 64 * 24, 2 * 15 * 64 * 24
    assert found.share == 1.0
    lstm = found.total_flops - 6 * 15 * 16 * 4
    assert forward + weights + 2 * 12 * 64 * 16 <= lstm <= forward + weights + 2 * 15 * 64 * 16


class OwnConv(nn.Conv1d):
    """A convolution with a forward pass of its own, which is not replaced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_layers_used_twice_recomputed_or_fed_by_data_are_attributed_to_themselves() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice, self.side = nn.Linear(8, 8), nn.Linear(8, 8), OwnConv(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            side = self.side(x.unsqueeze(1)).squeeze(1)  # its backward runs last, after that of `first`
            recomputed = lambda h: functional.gelu(self.twice(h))  # noqa: E731
            return checkpoint(recomputed, self.twice(self.first(x)), use_reentrant=False) + side

    found = measured(Model(), torch.randn(4, 8))
    product = 2 * 4 * 8 * 8
    side = 2 * 2 * 4 * 8 * 3
    assert (found.rounded_flops, found.total_flops) == ((2 + 3 + 4) * product, 9 * product + side)  # 4: again forward
    assert found.modules[0].module == "side" and found.modules[0].flops == side


class Disturbing(nn.Module):
    """Writes everything that a forward pass can write."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8, max_norm=0.1)
        self.norm, self.drop, self.out = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.frozen = nn.BatchNorm1d(8).eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls = self.calls + random.random() + np.random.rand()
        return self.out(self.drop(self.frozen(self.norm(self.table(tokens)))))


def test_measuring_changes_nothing() -> None:
    torch.manual_seed(0)
    model, tokens = Disturbing(), torch.randint(0, 10, (6,))
    layers = quantize_model(model, RECIPE).layers
    model(tokens).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(gradients)
    every = {name: tensor.clone() for name, tensor in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    threads = torch.get_num_threads(), torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled
    measured(model, tokens)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, every[name]), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name], name
        assert parameter.grad is None or torch.equal(parameter.grad, before[1][name]), name
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert str(np.random.get_state()) == str(states[2])
    assert threads == (torch.get_num_threads(), torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(layer.bypass for layer in layers.values())


def test_what_cannot_be_run_alone_is_said_and_raises_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    quantize_model(model, RECIPE)
    inputs = torch.randn(3, 4)

    def broken() -> Tensor:
        model(inputs)
        raise KeyError("no such\nbatch")

    found = measure_coverage(model, broken)
    assert found is not None and found.share == 1.0 and "forward pass could not be run" in found.note
    found = measure_coverage(model, lambda: model(inputs).detach().sum())
    assert found is not None and found.total_flops == 2 * 3 * 4 * 4 and "backward pass could not be run" in found.note
    nothing = measure_coverage(model, lambda: inputs.sum())
    assert nothing is not None and nothing.share is None and "not known" in nothing.sentence()
    assert measure_coverage(nn.Linear(3, 3, device="meta"), lambda: inputs.sum()) is None


def test_at_most_twenty_modules_are_stored_and_a_small_one_is_uncovered_all_the_same() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)), Conv1D(1, 4), nn.Linear(1, 4))
    left_out = quantize_model(model, RECIPE, filter_fn=lambda module, name: name == "31").left_out
    inputs = torch.randn(2, 4)
    found = measure_coverage(model, lambda: model(inputs).sum(), left_out)
    assert found is not None and [one.module for one in found.uncovered] == ["30"]
    record = json.loads(json.dumps(found.record()))
    assert record.keys() == {"share", "total_flops", "rounded_flops", "modules", "note", "formats", "attention_flops"}
    assert record["share"] == found.rounded_flops / found.total_flops
    assert len(record["modules"]) == 20 and {one["reason"] for one in record["modules"]} == {"filter_fn"}
    assert record["modules"][0].keys() == {"module", "type", "flops", "reason"}


def test_a_run_prints_and_stores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from altgrad.__main__ import main
    from altgrad.results import read_run
    from altgrad.storage.folder import Folder

    config = tmp_path / "c.yaml"
    config.write_text("model: micro\nformat: E4M3\nmax_steps: 2\nwarmup_steps: 1\neval_batches: 1\ncompile: false\n")
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    assert "of the GEMM FLOPs are rounded; left out: h.0.attn (product of two activations)" in capsys.readouterr().out
    run = read_run(Folder.at(tmp_path / "run"))
    assert run.rounded_share is not None and 0.8 < run.rounded_share < 0.95
    assert run.bytes_per_parameter == 13.0  # FP32 master, its E4M3 copy, two FP32 moments
    assert len(run.info["coverage"]["modules"]) == 2
