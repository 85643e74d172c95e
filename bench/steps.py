"""What the step rows share: the same model, batches and optimizer, rounded and plain, both compiled."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.quantization.layers import quantize_model
from altgrad.training.compiling import StepLoss
from altgrad.training.config import TrainConfig
from altgrad.training.data import Batches, TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer
from altgrad.training.trainer import Trainer
from bench.harness import cuda_device, cuda_ratio, ratio

# 26M parameters at a batch that one thread does in a second
_CPU = torch.device("cpu")
MEDIUM: dict[str, Any] = {"model": "medium", "block_size": 64, "batch_size": 2}
TINY: dict[str, Any] = {"model": "tiny"}


def config(**fields: Any) -> TrainConfig:
    """E4M3 at every site, nothing evaluated or diagnosed unless `fields` say so."""
    never = {"eval_interval": 10**9, "diagnostic_interval": 10**9, "checkpoint_interval": 10**9, "max_steps": 10**8}
    return TrainConfig(**({"format": "E4M3", "compile": True, "threads": 1, "device": "cpu"} | never | fields))


def bare_step(
    settings: TrainConfig, batches: Batches, quantised: bool, device: torch.device = _CPU
) -> Callable[[], object]:
    """A plain training loop's step: forward, backward, fused AdamW, one reading; on a GPU in bfloat16 autocast."""
    assert batches.vocabulary is not None
    model: nn.Module = build_gpt(settings, batches.vocabulary).to(device)
    layers = quantize_model(model, settings, counting=False) if quantised else {}
    optimizer = build_optimizer(model, settings)
    parameters = list(model.parameters())
    loss_of = StepLoss(model, layers, settings, device) if quantised else torch.compile(model, dynamic=False)
    numbers = iter(range(1, 10**9))

    def step() -> object:
        inputs, targets = (part.to(device) for part in batches.training(next(numbers)))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss: Tensor = loss_of(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
        optimizer.step()
        return loss.item()

    return step


def rounded_step_against_plain(**fields: Any) -> Callable[[int], float]:
    """The bare loop with rounded GEMMs, by the bare loop without."""

    def measure(pairs: int) -> float:
        settings = config(**fields)
        batches = Trainer(settings.altered(compile=False)).batches
        rounded, plain = (bare_step(settings, batches, quantised) for quantised in (True, False))
        return _ratio(rounded, plain, pairs)

    return measure


def trainer_step_against_plain(**fields: Any) -> Callable[[int], float]:
    """`Trainer.step`, which collects every site's statistics, by the bare loop without rounding."""

    def measure(pairs: int) -> float:
        trainer = Trainer(config(**fields))
        return _ratio(trainer.step, bare_step(trainer.config, trainer.batches, quantised=False), pairs)

    return measure


def rounded_step_against_bfloat16(**fields: Any) -> Callable[[int], float]:
    """On a GPU: the bare loop with rounded GEMMs, by the bare loop of the plain model, both in bfloat16 autocast."""

    def measure(pairs: int) -> float:
        device = cuda_device()
        settings = config(**fields)
        batches = TextBatches(load_corpus(settings), settings, settings.shape.block_size)
        rounded, plain = (bare_step(settings, batches, quantised, device) for quantised in (True, False))
        return cuda_ratio(rounded, plain, pairs)

    return measure


def _ratio(ours: Callable[[], object], reference: Callable[[], object], pairs: int) -> float:
    """One model after the other would hold two in memory anyway; garbage of the last row must not count here."""
    gc.collect()
    return ratio(ours, reference, pairs)
