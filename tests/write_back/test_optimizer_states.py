"""Moments in few bits: their values against float64 references, their random numbers, and what a loop has to do."""

from __future__ import annotations

import copy
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from altgrad.config.optimizer_states import moment_cast
from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.formats import find_format
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.round import round_to_format
from altgrad.quantization.kernel.scaled_rounding import mode_of, round_site, rounded_each, spec_for
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.quantization.stored import optimizer_states
from altgrad.quantization.stored.expansion import expanded
from altgrad.training.data import TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer, learning_rate
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL, weights

COAT = {"format": "E4M3", "block": "1x128", "scale_rule": "real", "scale_format": "FP32", "range_expansion": True}
DTYPES = {"E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2, "E2M1": ml_dtypes.float4_e2m1fn}
NAMES = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
BOTH = {"first_moment": COAT, "second_moment": COAT}


class Bench:
    """A layer of (rows, columns) whose AdamW has taken a step, so that its moments are there."""

    def __init__(self, rows: int = 64, columns: int = 96, **fields: Any) -> None:
        self.layer = nn.Linear(columns, rows)
        self.quantized: QuantizedModel = quantize_model(nn.Sequential(self.layer), Recipe(**fields))
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=1e-3)
        self.layer.weight.grad = torch.randn(rows, columns)
        self.layer.bias.grad = torch.randn(rows)
        self.quantized.begin_step(1, 1)
        self.optimizer.step()

    def rounded(self, moment: str, values: torch.Tensor, step: int = 2, seed: int = 1) -> torch.Tensor:
        """What becomes of values in a moment of the weight."""
        state = self.optimizer.state[self.layer.weight]
        state[NAMES[moment]].copy_(values)
        self.quantized.begin_step(seed, step)
        self.quantized.after_optimizer(self.optimizer)
        return state[NAMES[moment]].clone()


def log_normal(shape: tuple[int, ...], seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return 1e-5 * torch.exp(spread * torch.randn(shape, generator=generator)) * sign


def coat(x: np.ndarray, name: str, block: int) -> np.ndarray:
    """Dynamic range expansion and quantisation of a flat array in float64; codes by ml_dtypes."""
    dtype, found = DTYPES[name], np.zeros_like(x, dtype=np.float64)
    info = ml_dtypes.finfo(dtype)
    top, least = float(info.max), float(info.smallest_subnormal)
    for start in range(0, x.size, block):
        part = x[start : start + block].astype(np.float64)
        size = np.abs(part[part != 0])
        if not size.size:
            continue
        ratio = size.max() / size.min()
        k = math.log(top / least) / math.log(ratio) if ratio > 1 else 1.0
        spread = np.sign(part) * np.abs(part / size.max()) ** k
        codes = (spread * top).astype(np.float32).astype(dtype).astype(np.float64)
        found[start : start + block] = np.sign(codes) * np.abs(codes / top) ** (1 / k) * size.max()
    return found


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("moment", NAMES)
def test_range_expansion_is_the_published_one(moment, name, spread):
    """A thousandth may fall on the other side of a tie: x^k in float32 and in float64 differ in the last bits."""
    bench = Bench(rows=63, columns=97, **{moment: COAT | {"format": name}})  # the last block is not full
    x = log_normal((63, 97), spread=spread)
    if moment == "second_moment":
        x = x.abs()
    x[3, :40] = 0.0
    found = bench.rounded(moment, x).flatten().double().numpy()
    expected = coat(x.flatten().numpy(), name, 128)
    near = np.isclose(found, expected, rtol=2e-4, atol=0)
    assert near.mean() >= 0.999
    assert np.isclose(found, expected, rtol=1.0, atol=1e-12).all()
    assert ((found == 0) == (expected == 0)).mean() >= 0.9999


def test_range_expansion_spares_the_small_values_and_halves_the_error():
    x = log_normal((64, 96), spread=0.5).abs()
    plain = COAT | {"range_expansion": False}

    def error(fields: dict[str, Any]) -> float:
        found = Bench(second_moment=fields).rounded("second_moment", x)
        return float(((found - x) / x).double().square().mean().sqrt())

    assert error(COAT) < 0.5 * error(plain)


def test_range_expansion_at_the_ends():
    """Groups of one magnitude, of one value and of zeros come back; NaN and inf stay in sight; nothing overflows."""
    bench = Bench(rows=8, columns=128, first_moment=COAT)
    x = torch.zeros(8, 128)
    x[1], x[2, 5], x[3] = -3e-7, 2.5, log_normal((128,))
    x[4, :2] = torch.tensor([1e38, 1e-38])
    x[5, 0] = math.nan
    x[6, :3] = torch.tensor([math.inf, 1.0, 0.5])
    x[7] = 1.0 + 1e-7 * torch.arange(128)
    found = bench.rounded("first_moment", x)
    for row in (0, 1, 2):
        assert torch.allclose(found[row], x[row], rtol=1e-6, atol=0)
    assert torch.allclose(found[4, :2], x[4, :2], rtol=1e-4, atol=0) and not found[4, 2:].any()
    assert found[5, 0].isnan() and not found[5, 1:].any()
    assert found[6, :3].tolist() == pytest.approx([1.0, 1.0, 0.5])
    assert torch.allclose(found[7], x[7], rtol=2e-5)


@pytest.mark.parametrize("block", ["tensor", "1x32", "1x128"])
@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E0M7", "BF16"])
def test_without_expansion_a_moment_is_rounded_as_any_tensor(name, block):
    """Power-of-two scales by hand: the smallest with amax / scale within the format."""
    bench = Bench(rows=64, columns=96, second_moment={"format": name, "block": block})
    x = log_normal((64, 96)).abs()
    found = bench.rounded("second_moment", x)
    fmt = find_format(name)
    groups = x.reshape(1, -1) if block == "tensor" else x.reshape(-1, int(block[2:]))
    scale = 2.0 ** torch.ceil(torch.log2(groups.amax(1, keepdim=True).double() / fmt.max)) if fmt.scaled else 1.0
    expected = round_to_format((groups.double() / scale).float(), fmt).double() * scale
    assert torch.equal(found.double(), expected.view_as(found))


def test_stochastic_moments_are_right_on_average():
    """An eighth of the way between two values of E4M3, over 200 steps; the bias vector stays as it was."""
    fields = {"format": "E4M3", "rounding": "stochastic"}
    bench = Bench(first_moment=fields, second_moment=fields)
    x = torch.full((64, 96), 1.0 + 0.125 / 8)
    x[0, 0] = 1.75  # the largest: scale 2^-8
    bias = {name: value.clone() for name, value in bench.optimizer.state[bench.layer.bias].items()}
    for moment in NAMES:
        mean = torch.stack([bench.rounded(moment, x, step) for step in range(2, 202)]).double().mean(0)
        count, share = mean.numel() * 200, 1 / 8
        assert set(bench.rounded(moment, x).flatten().tolist()) == {1.0, 1.125, 1.75}
        assert abs(float(mean.flatten()[1:].mean()) - float(x[1, 1])) < 5 * 0.125 * math.sqrt(
            share * (1 - share) / count
        )
        each = 5 * 0.125 * math.sqrt(share * (1 - share) / 200)
        assert float((mean - x).abs().max()) < each * 1.2
    assert all(torch.equal(value, bias[name]) for name, value in bench.optimizer.state[bench.layer.bias].items())


def test_each_moment_parameter_step_and_seed_has_random_numbers_of_its_own():
    fields = {"format": "E4M3", "rounding": "stochastic"}
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    recipe = Recipe(
        format="E4M3", master_weights=False, update_rounding="stochastic", first_moment=fields, second_moment=fields
    )
    quantized = quantize_model(model, recipe)
    parameters = list(model.parameters())

    def drawn(seed: int, step: int) -> list[torch.Tensor]:
        """Halfway between two values everywhere."""
        optimizer = torch.optim.AdamW(parameters, lr=0.0)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        quantized.begin_step(seed, step)
        optimizer.step()
        kept = [value for p in parameters for value in (p.data, *list(optimizer.state[p].values())[1:])]
        for value in kept:
            value.fill_(1.0625)
        quantized.after_optimizer(optimizer)
        return [value.clone() for value in kept]

    one = drawn(1, 5)
    assert all(torch.equal(a, b) for a, b in zip(one, drawn(1, 5), strict=True))
    others = one + drawn(1, 6) + drawn(2, 5)
    for place, a in enumerate(others):
        assert set(a.flatten().tolist()) == {1.0, 1.125}
        for b in others[:place]:
            assert 0.45 < float((a == b).float().mean()) < 0.55


STACKED: dict[str, dict[str, Any]] = {
    "one scale": {"format": "E4M3"},
    "one scale, stochastic": {"format": "E5M2", "rounding": "stochastic"},
    "blocks, stochastic": {"format": "E4M3", "block": "1x32", "rounding": "stochastic"},
    "two levels": {"format": "E2M1", "block": "1x16", "scale_rule": "real", "scale_format": "E4M3"},
    "coat": COAT,
    "coat, stochastic": COAT | {"rounding": "stochastic"},
    "coat, one scale": COAT | {"block": "tensor"},
}


@pytest.mark.parametrize("name", STACKED)
def test_moments_rounded_in_one_pass_are_each_what_a_pass_of_their_own_gives(name):
    """The reference rounds one moment after the other by the operator of the layers' operands."""
    how = moment_cast("first_moment", STACKED[name])
    model = nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in ((48, 33), (33, 48), (96, 32), (48, 33), (5, 7))))
    quantized = quantize_model(model, Recipe(first_moment=STACKED[name]))
    optimizer = torch.optim.AdamW(model.parameters())
    for place, parameter in enumerate(model.parameters()):
        state = {"step": torch.tensor(1.0), "exp_avg_sq": torch.zeros_like(parameter)}
        optimizer.state[parameter] = state | {"exp_avg": log_normal(tuple(parameter.shape), seed=place)}
    before = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    quantized.begin_step(4, 9)
    quantized.after_optimizer(optimizer)
    key = torch.zeros(2, dtype=torch.int32)
    fill_key(key, *derived_words(4, 9, 0x4D))
    for place, (parameter, x) in enumerate(zip(model.parameters(), before, strict=True)):
        spec = spec_for(how.cast, how.cast.number_format, 2 * place, x.device)
        flat, mode, nothing = x.flatten(), mode_of(how.cast, "last"), torch.zeros(0)
        if how.range_expansion:
            spread = expanded(flat, how.cast.number_format, how.cast.block)
            expected = spread.contracted(round_site(spread.values, spec, nothing, key, mode)[0])
        else:
            expected = round_site(flat, spec, nothing, key, mode)[0]
        assert torch.equal(optimizer.state[parameter]["exp_avg"].flatten(), expected), place


@pytest.mark.parametrize("layers", [1, 5])
def test_a_step_rounds_moments_in_as_many_passes_as_there_are_sizes(layers, monkeypatch):
    passes = []

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(tuple(x.shape))
        return rounded_each(x, *rest)

    monkeypatch.setattr(optimizer_states, "rounded_each", counted)
    trainer = Trainer(SMALL.altered(n_layer=layers, n_embd=16, n_head=2, **BOTH))
    trainer.step()
    sizes = {p.numel() for p in trainer.model.parameters() if p.ndim >= 2}
    assert len(passes) == 2 * len(sizes) == 2 * len(set(passes))
    assert sum(stacked for stacked, _ in passes) == 2 * sum(p.ndim >= 2 for p in trainer.model.parameters())


LOOPS: dict[str, dict[str, Any]] = {
    "coat": {"format": "E4M3", **BOTH},
    "stochastic": {
        "format": "E4M3",
        "first_moment": {"format": "E4M3", "block": "1x32", "rounding": "stochastic"},
        "second_moment": {"format": "BF16", "rounding": "stochastic"},
    },
    "kahan": {"format": "E4M3", "master_weights": False, "update_rounding": "kahan"},
    "eco": {"format": "E4M3", "master_weights": False, "update_rounding": "eco", **BOTH},
    "eco stochastic": {"format": "E2M5", "master_weights": False, "update_rounding": "eco_stochastic"},
}


@pytest.mark.parametrize("fields", LOOPS.values(), ids=LOOPS)
def test_a_loop_written_by_hand_is_the_trainer_bit_for_bit(fields):
    config = SMALL.altered(learning_rate=3e-3, **fields)
    trainer = Trainer(config)
    expected = [trainer.step().record["loss"] for _ in range(config.max_steps)]

    model = build_gpt(config, 256)
    quantized = quantize_model(model, config)
    optimizer = build_optimizer(model, config)
    batches = TextBatches(load_corpus(config), config, config.shape.block_size)
    losses = []
    for step in range(1, config.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        quantized.begin_step(config.seed, step)
        optimizer.zero_grad()
        loss = model(*batches.training(step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        quantized.after_optimizer(optimizer)
        losses.append(loss.item())
    assert losses == expected
    assert torch.equal(weights(model), weights(trainer.model))


def test_moments_in_fp32_and_none_are_the_same_run_and_others_are_not():
    def final(**fields: Any) -> list[float]:
        trainer = Trainer(SMALL.altered(format="E4M3", max_steps=4, **fields))
        for _ in range(4):
            trainer.step()
        return weights(trainer.model).tolist()

    plain = final()
    assert final(first_moment={"format": "FP32"}, second_moment={"format": "FP32"}) == plain
    assert final(first_moment=COAT) != plain != final(second_moment=COAT) != final(first_moment=COAT)


def test_the_weights_of_matrices_alone_have_rounded_moments():
    trainer = Trainer(SMALL.altered(format="E4M3", **BOTH))
    for _ in range(3):
        trainer.step()
    for parameter, state in trainer.optimizer.state.items():
        for name in NAMES.values():
            values = state[name].flatten()
            distinct = len(set(values[:128].abs().tolist()))
            assert distinct <= 127 if parameter.ndim == 2 else distinct > 0.9 * min(128, len(values)), name


def test_a_sgd_has_no_second_moment_and_its_momentum_is_the_first():
    layer = nn.Linear(8, 8)
    quantized = quantize_model(nn.Sequential(layer), Recipe(first_moment={"format": "E4M3"}))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer.weight.grad = log_normal((8, 8))
    quantized.begin_step(1, 1)
    optimizer.step()
    before = copy.deepcopy(optimizer.state[layer.weight]["momentum_buffer"])
    quantized.after_optimizer(optimizer)
    after = optimizer.state[layer.weight]["momentum_buffer"]
    assert not torch.equal(before, after) and torch.allclose(before, after, rtol=0.07)
    quantized = quantize_model(nn.Sequential(nn.Linear(8, 8)), Recipe(second_moment={"format": "E4M3"}))
    with pytest.raises(ValueError, match=r"^second_moment: SGD keeps no exp_avg_sq; use AdamW[^\n]*$"):
        quantized.after_optimizer(optimizer)
    with pytest.raises(ValueError, match=r"^after_optimizer\(\): [^\n]*$"):
        quantized.after_optimizer()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "first_moment: names no format; "),
        ({"format": "E4M4M"}, "first_moment.*format='E4M4M'"),
        ({"format": "E4M3", "blok": "1x32"}, "first_moment.blok: known fields: .*; did you mean 'block'\\?"),
        ({"format": "E4M3", "block": "row"}, "first_moment.block='row': .*1x128"),
        ({"format": "E4M3", "block": "32x32"}, "first_moment.block='32x32': "),
        ({"format": "E4M3", "rounding": "toward_zero"}, "first_moment.rounding='toward_zero': expected nearest or "),
        ({"format": "E4M3", "scaling": "delayed"}, "first_moment.scaling='delayed': expected none or dynamic"),
        ({"format": "E4M3", "scale_rule": "real"}, "first_moment: scale_rule='real' with scale_format='E8M0'"),
        ({"format": "E4M3", "range_expansion": "yes"}, "first_moment.range_expansion='yes': expected true or false"),
        ({"format": "BF16", "range_expansion": True}, "first_moment.range_expansion=True with BF16: "),
        ({"format": "E4M3", "scaling": "none", "range_expansion": True}, "first_moment.range_expansion=True with "),
        ("E4M3", "first_moment='E4M3': "),
    ],
    ids=str,
)  # fmt: skip
def test_a_moment_that_makes_no_sense_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        TrainConfig(first_moment=fields)
