"""Context managers for settings of the whole process, which are restored after each step.

altgrad is also called from programs that train other models.  A library call that left TF32, the number of threads or
Dynamo's limits changed would alter their results.  A setting that cannot be restored (how the C library keeps freed
memory) is made only by the commands, see `allocator`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from altgrad import torch_private
from altgrad.config.train_config import TrainConfig
from altgrad.quantization.gemms.products import bfloat16_pays

# Dynamo's limit of graphs per code object in a process; trials of a sweep may differ in rounding, scaling and shape.
_GRAPHS_PER_CODE = 64


@contextmanager
def full_precision_sums() -> Iterator[None]:
    """Context without TF32, bfloat16 products of float32 operands and reduced-precision sums, on CUDA and on CPUs.

    TF32 keeps 10 mantissa bits of a float32 operand; bfloat16, which `set_float32_matmul_precision("medium")` selects
    on a CPU, keeps 7; reduced-precision reductions add partial sums in bfloat16.  torch has an old and a new interface
    for these settings, and raises on reading one that was set through the other; both are set and restored.
    """
    backends: Any = torch.backends
    cuda, cpu = backends.cuda.matmul, backends.mkldnn.matmul
    found = cuda.fp32_precision, cpu.fp32_precision
    reduced = cuda.allow_bf16_reduced_precision_reduction
    try:
        for_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the new interface
        for_all = "highest"
    if for_all != "highest":
        torch.set_float32_matmul_precision("highest")
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    cuda.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        if for_all != "highest":
            torch.set_float32_matmul_precision(for_all)
        cuda.fp32_precision, cpu.fp32_precision = found
        cuda.allow_bf16_reduced_precision_reduction = reduced


def mixed_precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Context of a forward pass: bfloat16 autocast, or none, as `config.autocast` says.

    What a recipe does not round (attention, what a norm passes on) is then computed as in a BF16 training; without it,
    attention of float32 tensors runs on no tensor core.  Rounded GEMMs are the same with and without, except that their
    outputs are bfloat16.  "auto" is true on a GPU with bfloat16 tensor cores, for the baseline as for every format.
    """
    if config.autocast is False or (config.autocast == "auto" and not bfloat16_pays(device)):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def room_for_graphs() -> Iterator[None]:
    """Context with a higher recompilation limit of Dynamo, and with our autograd functions allowed in its disk cache.

    Beyond its default limit of 8 graphs Dynamo silently runs eagerly.  Graphs that contain custom autograd functions
    are cached only if these are pure functions of their arguments, which ours are.
    """
    dynamo, functorch = torch_private.compiler_settings()
    limit, allowed = dynamo.recompile_limit, functorch.autograd_cache_allow_custom_autograd_functions
    dynamo.recompile_limit = _GRAPHS_PER_CODE
    functorch.autograd_cache_allow_custom_autograd_functions = True
    try:
        yield
    finally:
        dynamo.recompile_limit = limit
        functorch.autograd_cache_allow_custom_autograd_functions = allowed


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Context in which torch uses `number` CPU threads; None: the number stays."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)
