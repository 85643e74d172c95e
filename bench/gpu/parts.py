"""`python -m bench.gpu.parts PART DEVICE SIZE`: one part of the measurement, a line of JSON for each number.

Each part is a process of its own: one that fails or takes too long loses nothing that was found before.  With the size
"small" nothing is compiled, so that a CPU goes through all lines in seconds.
"""

from __future__ import annotations

import functools
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from altgrad.config.train_config import TrainConfig
from altgrad.experiment.gpu_driver import gpus
from altgrad.experiment.runner import run_format_experiment
from altgrad.formats import find_format
from altgrad.quantization.kernel.compiled import CompiledRounding
from altgrad.quantization.kernel.ranks import Ranks, largest_over_ranks
from altgrad.quantization.quantize import quantize_model
from altgrad.training.compile.step_loss import StepLoss
from altgrad.training.data import TextBatches, load_corpus
from altgrad.training.trainer import Trainer
from bench.harness import milliseconds_on, ratio_on
from bench.kernels import native_against_bfloat16
from bench.steps import config, loop_step, plain_model
from tune.plan.resources.gpu_memory import estimate, vocabulary_of

Row = dict[str, Any]  # what, value, unit
ROOT = Path(__file__).parents[2]

_ROUNDINGS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "nearest, counts": {"counting": True},
    "stochastic": {"rounding": "stochastic"},
    "tensor": {"granularity": "tensor"},
    "tensor, counts": {"granularity": "tensor", "counting": True},
    "row": {"granularity": "row"},
    "1x32": {"granularity": "1x32"},
    "1x32 first": {"granularity": "1x32", "dimension": "first"},
    "1x128 first": {"granularity": "1x128", "dimension": "first"},
    "128x128": {"granularity": "128x128"},
}
_STEPS: dict[str, dict[str, Any]] = {
    "E4M3": {"format": "E4M3"},
    "E4M3 delayed": {"format": "E4M3", "scaling": "delayed"},
    "mxfp8": {"recipe": "mxfp8"},
}
_SIZES: dict[str, dict[str, Any]] = {
    "50M": {"model": "medium", "n_layer": 16, "batch_size": 16},
    "350M": {"model": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024, "batch_size": 8},
}
_SMALL = {"model": "micro", "batch_size": 2}
_FEW_LAYERS = 4  # compiled as one graph, whose time of compiling grows with its layers


def facts(device: torch.device, small: bool) -> Iterator[Row]:
    """Versions, and what the driver and torch say of the device."""
    yield _row("torch", torch.__version__)
    yield _row("python", sys.version.split()[0])
    for number, gpu in enumerate(gpus()):
        yield _row(f"GPU {number}", gpu.name)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        yield _row("capability", f"{found.major}.{found.minor}")
        yield _row("memory", found.total_memory / 2**30, "GiB")
        yield _row("CUDA of torch", str(torch.version.cuda))


def tests(device: torch.device, small: bool) -> Iterator[Row]:
    """tests/training/test_cuda.py, by outcome; without a device its tests are skipped."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rfE", "tests/training/test_cuda.py"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    *failures, last = said.strip().splitlines() or [""]
    for number, outcome in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last):
        yield _row(f"tests {outcome}", int(number))
    for failure in failures:
        if failure.startswith(("FAILED", "ERROR")):
            yield _row("failure", failure[:300])


def kernels(device: torch.device, small: bool) -> Iterator[Row]:
    """Rounding of 2^27 float32 values (512 MiB: ten times the largest cache), divided by a copy of them."""
    x = torch.randn((64, 256) if small else (32768, 4096), device=device)
    yield _row("copy", 2 * x.nbytes / milliseconds_on(device, x.clone, _pairs(device)) / 1e6, "GB/s")
    for name, options in _ROUNDINGS.items():
        wanted = dict(options)
        counting = wanted.pop("counting", False)
        rounding = CompiledRounding(find_format("E4M3"), **wanted)
        run: Callable[..., object] = rounding.with_counts if counting else rounding
        yield _row(f"round {name}", ratio_on(device, functools.partial(run, x), x.clone, _pairs(device)), "x copy")


def steps(size: str, device: torch.device, small: bool) -> Iterator[Row]:
    """Training steps compiled by blocks, divided by the step of the plain model in BF16 autocast.

    With counts it is the trainer's step, which reads the counts of every site.
    """
    sizes = _SMALL if small else _SIZES[size]
    common = {"device": str(device), "compile": False if small else "blocks"}
    plain, batches = _plain(config(**sizes, **common), device)
    yield _row(f"{size} BF16 step", milliseconds_on(device, plain, _pairs(device)), "ms")
    for name, fields in _STEPS.items():
        counted = config(**sizes, **common, **fields)
        if all(cast.scaling != "delayed" for cast in counted.casts_at().values()):  # which needs the counts
            yield _row(
                f"{size} {name}", ratio_on(device, _bare(counted, batches, device), plain, _pairs(device)), "x BF16"
            )
            gc.collect()  # a model and its optimizer refer to each other
        yield _row(f"{size} {name}, counts", ratio_on(device, Trainer(counted).step, plain, _pairs(device)), "x BF16")
        gc.collect()


def graphs(device: torch.device, small: bool) -> Iterator[Row]:
    """A step with CUDA graphs, of a few layers of the 50M model, with and without; nothing on a CPU, which has none."""
    if device.type != "cuda":
        return
    sizes = (_SMALL if small else _SIZES["50M"]) | {"n_layer": _FEW_LAYERS, "device": str(device)}
    plain, _ = _plain(config(**sizes, compile="blocks"), device)
    for name, fields in {"one graph": {"compile": True}, "CUDA graphs": {"cuda_graphs": True}}.items():
        step = Trainer(config(**sizes, **fields)).step
        yield _row(f"{_FEW_LAYERS} layers E4M3, {name}", ratio_on(device, step, plain, _pairs(device)), "x BF16")


def _plain(settings: TrainConfig, device: torch.device) -> tuple[Callable[[], object], TextBatches]:
    """(the step of the plain model in BF16 autocast, its batches)."""
    batches = TextBatches(load_corpus(settings), settings, settings.shape.block_size)
    model = plain_model(settings, batches, device)
    for block in (*model.h, model.lm_head):
        block.compile(dynamic=False)
    return loop_step(model, model, settings, batches, device), batches


def native(device: torch.device, small: bool) -> Iterator[Row]:
    """Forward and backward of an MLP of a 1B-parameter GPT on FP8 tensor cores, rounding included."""
    tokens, width = (64, 32) if small else (16384, 2048)
    found = native_against_bfloat16(device, tokens, width, _pairs(device))
    yield _row("MLP of a 1B model, FP8 tensor cores", statistics.median(found), "x BF16")


def memory(device: torch.device, small: bool) -> Iterator[Row]:
    """Peak of a trial's tensors as torch's allocator has it, divided by the estimate; on a CPU the estimate alone."""
    for name, sizes in {"tiny": {"model": "tiny"}, **_SIZES}.items():
        fields = {"format": "E4M3", "use_shadow": True, "log_ulp": True, "diagnostic_interval": 1}
        settings = config(**(sizes | {"device": str(device), "compile": False} | fields))
        expected = estimate(settings, vocabulary_of(settings))
        yield _row(f"{name}, estimate", expected.tensors / 2**30, "GiB")
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            trainer = Trainer(settings)
            for _ in range(2):
                trainer.step()
            yield _row(f"{name}, peak", torch.cuda.max_memory_allocated(device) / expected.tensors, "x estimate")
            reserved = torch.cuda.mem_get_info(device)
            yield _row(f"{name}, in use", (reserved[1] - reserved[0]) / expected.on_gpu, "x estimate")
            del trainer


def comparison(device: torch.device, small: bool) -> Iterator[Row]:
    """A short training in three formats: do they order as on a CPU?"""
    for fmt in ("BF16", "E4M3", "E7M0"):
        size, steps_in_all = ("micro", 5) if small else ("tiny", 300)
        settings = TrainConfig(
            format=fmt,
            model=size,
            max_steps=steps_in_all,
            eval_interval=steps_in_all,
            device=str(device),
            compile=False if small else "blocks",
        )
        with tempfile.TemporaryDirectory() as folder:
            result = run_format_experiment(settings, Path(folder) / fmt)
        yield _row(f"{fmt}, validation loss", result.final_validation_loss, "nats")


def ranks(device: torch.device, small: bool) -> Iterator[Row]:
    """Losses of one run on all GPUs (NCCL), or on two processes of a CPU (gloo), against those of one process."""
    number = torch.cuda.device_count() if device.type == "cuda" else 2
    yield _row("processes", number)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (number, folder, device.type), nprocs=number)
        together = json.loads(Path(folder, "losses").read_text())
    alone = _losses(device)
    furthest = max(abs(ours - theirs) for ours, theirs in zip(together, alone, strict=True))
    yield _row("largest difference of a loss", furthest, "nats")
    with tempfile.TemporaryDirectory() as folder:  # one process alone calls none of these
        multiprocessing.spawn(_collectives, (number, folder, device.type), nprocs=number)
        yield _row("collectives that gave another number", len(json.loads(Path(folder, "wrong").read_text())))


def _rank(rank: int, size: int, folder: str, kind: str) -> None:
    with _joined(rank, size, folder, kind):
        found = _losses(torch.device(kind))
        if rank == 0:
            Path(folder, "losses").write_text(json.dumps(found))


def _collectives(rank: int, size: int, folder: str, kind: str) -> None:
    """What the ranks of a run exchange, for values of which the results are known."""
    with _joined(rank, size, folder, kind):
        ranks, own = Ranks(rank, size), torch.tensor([rank + 1.0, 2.0], device=kind)
        (total,), there = ranks.add_up([own], [own])
        largest = torch.tensor([True, False], device=kind)
        found = {
            "sum": total.tolist() == [size * (size + 1) / 2, 2.0 * size] and there.tolist() == [size],
            "maximum and sum": ranks.combine(own, largest).tolist() == [size, 2.0 * size],
            "maximum in a graph": largest_over_ranks(own).tolist() == [size, 2.0],
        }
        if rank == 0:
            Path(folder, "wrong").write_text(json.dumps([name for name, right in found.items() if not right]))


@contextmanager
def _joined(rank: int, size: int, folder: str, kind: str) -> Iterator[None]:
    if kind == "cuda":
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    yield
    dist.destroy_process_group()


def _losses(device: torch.device) -> list[float]:
    trainer = Trainer(config(model="micro", batch_size=16, device=device.type, compile=False))
    return [trainer.step().record["loss"] for _ in range(5)]


def _bare(settings: TrainConfig, batches: TextBatches, device: torch.device) -> Callable[[], object]:
    model = plain_model(settings, batches, device)
    quantized = quantize_model(model, settings, counting=False)
    loss_of = StepLoss(model, quantized.layers, settings, device)
    return loop_step(model, loss_of, settings, batches, device, quantized)


def _pairs(device: torch.device) -> int:
    return 11 if device.type == "cuda" else 1


def _row(what: str, value: float | str | None, unit: str = "") -> Row:
    return {"what": what, "value": value, "unit": unit}


PARTS: dict[str, Callable[[torch.device, bool], Iterator[Row]]] = {
    "facts": facts,
    "kernels": kernels,
    "steps_50M": functools.partial(steps, "50M"),
    "native": native,
    "tests": tests,
    "memory": memory,
    "comparison": comparison,
    "graphs": graphs,
    "steps_350M": functools.partial(steps, "350M"),
    "ranks": ranks,
}


if __name__ == "__main__":
    if sys.argv[3] == "small":
        torch.compiler.set_stance("force_eager")
    for row in PARTS[sys.argv[1]](torch.device(sys.argv[2]), sys.argv[3] == "small"):
        print(json.dumps(row), flush=True)
