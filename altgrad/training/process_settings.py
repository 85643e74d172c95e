"""Settings that the whole process shares: borrowed for as long as a step lasts, and given back as they were.

altgrad is called from programs that train other things too.  A library call that left TF32 switched off, another number
of threads or Dynamo's limits changed would alter what they compute, so each setting is a context manager here.  What
cannot be given back (how the C library keeps freed memory) is set by the commands alone, see `allocator`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Graphs that a process may hold per piece of code: a sweep's trials may differ in rounding, scaling and shape.
_GRAPHS_PER_CODE = 64


@contextmanager
def full_precision_sums() -> Iterator[None]:
    """Within, nothing makes products of float32 or sums of bfloat16 products inexact, on CUDA or on a CPU.

    TF32 keeps 10 mantissa bits of a float32 operand, bfloat16 (which `set_float32_matmul_precision("medium")` asks for
    on a CPU) keeps 7; reduced-precision reductions add partial sums in bfloat16.  torch has an old and a new interface
    for this and refuses to read through one what was set through the other, so both are set, and both restored.
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


@contextmanager
def room_for_graphs() -> Iterator[None]:
    """Within, Dynamo compiles as many variants of a step as a sweep has, and graphs with our functions go to disk.

    Beyond its own limit of 8 Dynamo would run eagerly without a word.  Our autograd functions are pure functions of
    their arguments, which is what keeping a graph on disk asks of them.
    """
    import torch._functorch.config  # not before it is needed: half a second

    dynamo, functorch = torch._dynamo.config, torch._functorch.config
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
    """Within, torch computes on so many CPU threads; None leaves their number alone."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)
