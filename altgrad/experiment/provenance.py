"""Provenance of a run: the entries of `run.json` besides its config, so that a result can be traced and repeated."""

from __future__ import annotations

import platform
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from altgrad import __version__
from altgrad.quantization.coverage import Coverage, measure_coverage
from altgrad.training.data import Source, unigram_entropy_of
from altgrad.training.task.batch import as_batch, changed
from altgrad.training.task.loss_value import read_loss
from altgrad.training.task.task_batches import TaskBatches
from altgrad.training.trainer import Trainer


def provenance(trainer: Trainer) -> dict[str, Any]:
    """Versions, machine, execution of the step, and the task with hashes of initial weights and batches."""
    source = getattr(trainer.batches, "source", None)
    return {
        "versions": {"altgrad": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "git_commit": _git_commit(),
        "host": socket.gethostname(),
        "device": _device_name(trainer.device),
        "workers": trainer.ranks.size,
        "threads": torch.get_num_threads(),
        "compiled": trainer.compiled,
        "compile_reason": trainer.compile_reason,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "vocabulary": trainer.batches.vocabulary,
        "unigram_entropy": unigram_entropy_of(trainer.batches),
        "layers": list(trainer.layers),
        "unit": trainer.loss_unit,
        "task_hash": trainer.task.digest,
        "initial_weights_hash": trainer.initial_weights_hash,
        "batches_hash": trainer.batches.digest(),
        "data": asdict(source) if isinstance(source, Source) else None,
    }


def coverage(trainer: Trainer) -> Coverage | None:
    """Measure the rounded share of the model's matrix products on the first held-out batch; None on `meta`.

    A held-out batch is used because `Batches.validation` may be called at any time without affecting the training.  A
    task that holds nothing out gives the batch of step 1 instead, as often as it is asked.
    """
    batches = trainer.batches.validation()
    if not batches and isinstance(trainer.batches, TaskBatches):
        batches = [trainer.batches.training(1)]
    if not batches:
        return Coverage(0, 0, (), "there is no held-out batch to measure it on")
    batch = changed(as_batch(batches[0], trainer.task.said), lambda tensor: tensor.to(trainer.device))
    return measure_coverage(
        trainer.model, lambda: read_loss(trainer.task.loss(trainer.model, batch))[0], trainer.quantized.left_out
    )


def _git_commit() -> str | None:
    """Commit of the git checkout that contains this file; None if it is installed elsewhere."""
    this = Path(__file__)
    if _git(this.parent, "ls-files", this.name) is None:
        return None
    return _git(this.parent, "rev-parse", "HEAD")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _device_name(device: torch.device) -> str:
    """Torch's name of the device with its hardware: `cuda (NVIDIA H100)`, `cpu (x86_64)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"
