"""FP16 is scaled where a cast asks for it, and nowhere else; oracle: NumPy's float16 under a scale found by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from altgrad.config.cast import Cast
from altgrad.config.recipe import Recipe
from altgrad.formats import find_format
from altgrad.quantization.fake_quantize import fake_quantize
from altgrad.quantization.quantize import quantize_model
from tests.references.oracles import same_bits


def values(size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return size * torch.randn(64, 96, generator=generator)


def by_hand(x: torch.Tensor, block: str) -> np.ndarray:
    """Each group under the smallest power of two with amax / scale <= 65504, by NumPy's conversion to float16."""
    parts = [x.reshape(-1)] if block == "tensor" else list(x.reshape(-1, int(block[2:])))
    found = []
    for part in parts:
        scale = 2.0 ** math.ceil(math.log2(float(part.abs().max()) / 65504))
        found.append((part.double().numpy() / scale).astype(np.float16).astype(np.float64) * scale)
    return np.concatenate(found).astype(np.float32).reshape(x.shape)


@pytest.mark.parametrize("block", ["tensor", "1x32"])
@pytest.mark.parametrize("size", [1e-12, 1e-5, 1.0, 1e7])
def test_a_scale_keeps_what_fp16_alone_would_lose(size: float, block: str) -> None:
    x = values(size)
    plain, scaled = (Cast(format="FP16", block=block, scale_fp16=asked) for asked in (False, True))
    with np.errstate(over="ignore"):
        assert same_bits(fake_quantize(x, plain).numpy(), x.numpy().astype(np.float16).astype(np.float32))
    found = fake_quantize(x, scaled)
    assert same_bits(found.numpy(), by_hand(x, block))
    assert found.isfinite().all() and torch.count_nonzero(found) == torch.count_nonzero(x)
    assert str(plain) == "FP16" and str(scaled) == f"FP16 {block}"


ASKED: dict[str, Any] = {gemm: {"format": "FP16", "scale_fp16": True} for gemm in ("fprop", "dgrad", "wgrad")}


def test_layers_and_weights_at_rest_are_scaled_as_asked_and_stay_so_through_a_checkpoint() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 64, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(values(1e-12))
    expected = by_hand(model[0].weight.detach(), "tensor")
    quantized = quantize_model(model, Recipe(gemms=ASKED, master_weights=False))
    assert same_bits(model[0].weight.detach().numpy(), expected)
    again = quantize_model(torch.nn.Sequential(torch.nn.Linear(96, 64, bias=False)), Recipe(gemms=ASKED))
    again.load_state_dict(quantized.state_dict() | {"corrections": {}})
    with torch.no_grad():
        again.model[0].weight.copy_(values(1e-12))
    layer = again.layers["0"]
    assert same_bits(layer.rounded_weight().numpy(), expected)
    layer.set_format("weight", find_format("BF16"))  # another wide format has no scale, whatever the cast asks for
    assert torch.equal(layer.rounded_weight(), values(1e-12).bfloat16().float())


def test_a_second_moment_in_scaled_fp16() -> None:
    layer = torch.nn.Linear(96, 64)
    quantized = quantize_model(torch.nn.Sequential(layer), Recipe(second_moment={"format": "FP16", "scale_fp16": True}))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(4, 96)).sum().backward()
    optimizer.step()
    moment = optimizer.state[layer.weight]["exp_avg_sq"]
    moment.copy_(values(1e-12).abs())  # below FP16's smallest subnormal 6e-8
    quantized.begin_step(1, 1)
    quantized.after_optimizer(optimizer)
    assert same_bits(moment.numpy(), by_hand(values(1e-12).abs(), "tensor"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": "BF16"}, "scale_fp16=True with format='BF16': it is for FP16"),
        ({"format": "E4M3"}, "scale_fp16=True with format='E4M3': it is for FP16"),
        ({"format": "FP16", "scaling": "none"}, "scale_fp16=True with scaling='none'"),
    ],
)
def test_a_scale_that_could_do_nothing_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Cast(scale_fp16=True, **fields)
    with pytest.raises(ValueError, match=said) as refused:
        Recipe(gemms={"fprop": {"scale_fp16": True, **fields}})
    assert len(str(refused.value).splitlines()) == 1
