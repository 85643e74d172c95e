"""The measurements of the step rows: the same model, batches and optimizer, rounded and plain, both compiled."""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.experiment.runner import run_format_experiment
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.training.compile.step_loss import StepLoss
from altgrad.training.data import Batches, TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer
from altgrad.training.trainer import Trainer
from bench.harness import cuda_device, cuda_ratio, ratio

_CPU = torch.device("cpu")
# 26M parameters, at a batch that takes one thread a second per step
MEDIUM: dict[str, Any] = {"model": "medium", "block_size": 64, "batch_size": 2}
# Of a recipe with five or six roundings per layer, where one graph of 33 layers would take minutes to compile
BY_BLOCKS: dict[str, Any] = MEDIUM | {"compile": "blocks"}
TINY: dict[str, Any] = {"model": "tiny"}
# nanoGPT's character model for a CPU
NANOGPT: dict[str, Any] = {"task": "nanogpt", "n_layer": 4, "n_head": 4, "n_embd": 96, "block_size": 64}
_INTERVAL = 25  # steps between diagnostics, as in the sweep
_DIAGNOSTICS = {"use_shadow": True, "log_stiffness": True, "log_grid_alignment": True, "log_ulp": True}
_RUN_STEPS = 500  # of a run of the default sweep


def config(**fields: Any) -> TrainConfig:
    """E4M3 for all tensors unless `fields` name a recipe; without validation and diagnostics unless they say so."""
    numbers = {} if "recipe" in fields else {"format": "E4M3"}
    never = {"eval_interval": 10**9, "diagnostic_interval": 10**9, "checkpoint_interval": 10**9, "max_steps": 10**8}
    return TrainConfig(**({"compile": True, "threads": 1, "device": "cpu"} | numbers | never | fields))


def bare_step(
    settings: TrainConfig, batches: Batches, quantised: bool, device: torch.device = _CPU
) -> Callable[[], object]:
    """The step of a plain training loop: forward, backward, fused AdamW, reading the loss; on a GPU in autocast."""
    model = plain_model(settings, batches, device)
    if not quantised:
        return loop_step(model, torch.compile(model, dynamic=False), settings, batches, device)
    quantized = quantize_model(model, settings, counting=False)
    loss_of = StepLoss(model, quantized.layers, settings, device)
    return loop_step(model, loss_of, settings, batches, device, quantized)


def plain_model(settings: TrainConfig, batches: Batches, device: torch.device = _CPU) -> nn.Module:
    assert batches.vocabulary is not None
    return build_gpt(settings, batches.vocabulary).to(device)


def loop_step(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    settings: TrainConfig,
    batches: Batches,
    device: torch.device = _CPU,
    quantized: QuantizedModel | None = None,
) -> Callable[[], object]:
    """The step of a plain training loop around `loss_of`, a form of the model; rounded moments are part of it."""
    optimizer = build_optimizer(model, settings)
    if quantized is not None:
        quantized.attach(optimizer)
        quantized.compile_stored()
    parameters = list(model.parameters())
    numbers = iter(range(1, 10**9))

    def step() -> object:
        number = next(numbers)
        if quantized is not None:
            quantized.begin_step(None, number)
        inputs, targets = (part.to(device) for part in batches.training(number))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
        optimizer.step()
        return loss.item()

    return step


def rounded_step_against_plain(**fields: Any) -> Callable[[int], list[float]]:
    """The bare loop with rounded GEMMs, divided by the bare loop without rounding."""

    def measure(pairs: int) -> list[float]:
        settings = config(**fields)
        batches = Trainer(settings.altered(compile=False)).batches
        rounded, plain = (bare_step(settings, batches, quantised) for quantised in (True, False))
        return _ratio(rounded, plain, pairs)

    return measure


def trainer_step_against_plain(**fields: Any) -> Callable[[int], list[float]]:
    """`Trainer.step`, which collects every site's counts, divided by the bare loop without rounding."""

    def measure(pairs: int) -> list[float]:
        trainer = Trainer(config(**fields))
        return _ratio(trainer.step, bare_step(trainer.config, trainer.batches, quantised=False), pairs)

    return measure


def reference_step_against_plain(compiled: bool) -> Callable[[int], list[float]]:
    """`Trainer.step` of a run in FP32 with nanoGPT's model, divided by the bare loop, both eager or both compiled."""

    def measure(pairs: int) -> list[float]:
        trainer = Trainer(config(format="FP32", compile=compiled, **NANOGPT))
        model = trainer.task.model(trainer.config)
        loss_of = torch.compile(model, dynamic=False) if compiled else model
        return _ratio(trainer.step, loop_step(model, loss_of, trainer.config, trainer.batches), pairs)

    return measure


def rounded_step_against_bfloat16(**fields: Any) -> Callable[[int], list[float]]:
    """On a GPU, in bfloat16 autocast: the bare loop with rounded GEMMs, divided by that of the plain model."""

    def measure(pairs: int) -> list[float]:
        device = cuda_device()
        settings = config(**fields)
        batches = TextBatches(load_corpus(settings), settings, settings.shape.block_size)
        rounded, plain = (bare_step(settings, batches, quantised, device) for quantised in (True, False))
        return cuda_ratio(rounded, plain, pairs)

    return measure


def diagnosed_step_against_step(pairs: int) -> list[float]:
    """The trainer's step with all diagnostics and the shadow at the sweep's interval, divided by that without."""
    without = Trainer(config(**TINY))
    measured = Trainer(config(**TINY, **_DIAGNOSTICS, diagnostic_interval=_INTERVAL))

    def steps(trainer: Trainer) -> None:
        for _ in range(_INTERVAL):
            trainer.step()

    return ratio(lambda: steps(measured), lambda: steps(without), pairs)


def run_against_steps(pairs: int) -> list[float]:
    """A run with results folder, collapse detection and checkpoint, divided by the trainer's steps alone."""
    settings = config(**TINY, max_steps=_RUN_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        names = itertools.count()

        def steps() -> None:
            trainer = Trainer(settings)
            for _ in range(_RUN_STEPS):
                trainer.step()

        return ratio(lambda: run_format_experiment(settings, Path(folder) / str(next(names))), steps, pairs, warm_up=1)


def second_trial(pairs: int) -> list[float]:
    """Processor seconds to the end of the first step of a further trial, with another format, in a running process."""
    Trainer(config(**TINY)).step()  # compiles, or loads compiled code from the cache
    formats, taken = itertools.cycle(["E5M2", "E3M4", "BF16"]), []
    for seed in range(2, 2 + pairs):
        started = time.process_time()
        Trainer(config(**TINY, seed=seed, format=next(formats))).step()
        taken.append(time.process_time() - started)
    return taken


def _ratio(ours: Callable[[], object], reference: Callable[[], object], pairs: int) -> list[float]:
    """`ratio` after a garbage collection, so that the models of the last row do not affect the times."""
    gc.collect()
    return ratio(ours, reference, pairs)
