"""What the memory estimate says is saved for backward, against the tensors that autograd saves, counted by its hooks.

A CPU that is told to compute as a GPU does by itself (autocast, bfloat16 operands) saves the same tensors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.quantize import quantize_model
from altgrad.training.model import GPT
from altgrad.training.process_settings import mixed_precision
from tune.plan.resources.gpu_memory import estimate, saved_for_backward

VOCABULARY = 320
SHAPE: dict[str, Any] = {"model": "micro", "n_layer": 3, "batch_size": 4, "device": "cpu"}
AS_A_GPU = {"autocast": True, "gemm_dtype": "bfloat16"}
CASES: dict[str, dict[str, Any]] = {
    "float32": {"format": "E4M3"},
    "baseline": {"format": "BF16"} | AS_A_GPU,
    "tensor": {"format": "E4M3"} | AS_A_GPU,
    "mxfp8": {"recipe": "mxfp8"} | AS_A_GPU,
    "real scales, which bfloat16 does not hold": {"recipe": "te_delayed", "autocast": True},
    "bfloat16 operands alone": {"format": "E4M3", "gemm_dtype": "bfloat16"},
    "accumulated": {"format": "E4M3", "accumulate": 2} | AS_A_GPU,
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_counts_what_autograd_saves(case: str) -> None:
    config = TrainConfig(**SHAPE, **CASES[case])
    model = GPT(config.shape, VOCABULARY)
    sites = [site for layer in quantize_model(model, config).layers.values() for site in layer.sites.values()]
    states = [*model.parameters(), *(site.spec for site in sites), *(site.history for site in sites)]
    own = {state.untyped_storage().data_ptr() for state in states}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(config.batch_size // config.accumulate, config.shape.block_size, dtype=torch.int64)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, mixed_precision(config, torch.device("cpu")):
        model(tokens, tokens)
    saved = sum(kept.untyped_storage().nbytes() for place, kept in found.items() if place not in own)
    assert saved_for_backward(config, VOCABULARY) == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("fields", [{"format": "BF16"}, {"format": "E4M3"}, {"recipe": "mxfp8"}], ids=str)
def test_on_a_gpu_autocast_and_bfloat16_operands_are_counted_by_themselves(fields: dict[str, Any]) -> None:
    by_itself = TrainConfig(**SHAPE | {"device": "cuda"}, **fields)
    on_request = TrainConfig(**SHAPE, **fields, **AS_A_GPU)
    assert estimate(by_itself, VOCABULARY) == estimate(on_request, VOCABULARY)
    exact = TrainConfig(**SHAPE | {"device": "cuda"}, **fields, autocast=False, gemm_dtype="float32")
    assert saved_for_backward(by_itself, VOCABULARY) < 0.62 * saved_for_backward(exact, VOCABULARY)
    assert saved_for_backward(exact, VOCABULARY) == saved_for_backward(TrainConfig(**SHAPE, **fields), VOCABULARY)
