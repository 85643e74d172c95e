"""Makes a CPU build of torch generate code for one H100: for tracing and code generation, nothing is run.

All private names of Inductor and Triton that this needs are in this file; they are those of the pinned torch and
triton (`tests.cuda_code.PINNED`).  It changes the process for good, so it is imported only by processes of their own.
"""

from __future__ import annotations

import os
import types
from typing import Any, NamedTuple

import torch
import torch._inductor.fx_passes.joint_graph as joint_graph
import triton
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.codecache import PyCodeCache
from torch._inductor.fx_passes import fuse_attention, pad_mm
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

H100 = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32, total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, gcnArchName="", clock_rate=1980000, memory_clock_rate=2619000,
    memory_bus_width=5120,
)  # fmt: skip
TARGET = GPUTarget("cuda", 90, 32)


class Generated(Exception):
    """Raised instead of running generated code."""


class Found(NamedTuple):
    """A graph that was compiled."""

    code: str  # source of its wrapper and kernels
    moved: int  # bytes read and written, by Inductor's count
    launches: int  # of generated kernels


class FakeDriver:
    """Triton's driver of one H100 that can do nothing but say what it is."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def __getattr__(self, name: str) -> Any:
        raise Generated(f"driver.{name}")


class _OnTheCpu(TorchDispatchMode):
    """Inductor evaluates constants for real: on the CPU then."""

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        if keywords.get("device") is not None:
            keywords["device"] = torch.device("cpu")
        return operator(*arguments, **keywords)


def pretend() -> list[Found]:
    """Make this process, into which `guard.so` was preloaded (see `process`), believe in one H100.

    Returns the list to which each compiled graph is appended, instead of running.
    """
    torch.set_num_threads(1)
    believed: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_properties": lambda device=None: H100, "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: H100.name, "_lazy_init": lambda: None,
        "synchronize": lambda device=None: None, "is_bf16_supported": lambda including_emulation=True: True,
        "_exchange_device": lambda device: 0, "_maybe_exchange_device": lambda device: 0,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
    }  # fmt: skip
    for name, value in believed.items():
        setattr(torch.cuda, name, value)
    for name in ("device_count", "current_device", "get_device_properties", "synchronize", "is_bf16_supported"):
        setattr(device_interface.CudaInterface, name, staticmethod(believed[name]))
    for name in ("exchange_device", "maybe_exchange_device"):
        setattr(device_interface.CudaInterface, name, staticmethod(believed[f"_{name}"]))
    torch.accelerator.is_available = lambda: False
    torch.accelerator.current_accelerator = lambda check_available=False: None  # type: ignore[assignment]
    fake_tensor.init_gpu_context = lambda *arguments, **keywords: None
    fuse_attention._sfdp_init = lambda *arguments, **keywords: None  # type: ignore[assignment]
    pad_mm._pad_mm_init = lambda *arguments, **keywords: None  # type: ignore[assignment]
    folder = joint_graph.UniformValueConstantFolder
    for name in ("__init__", "run"):
        setattr(folder, name, _on_the_cpu(getattr(folder, name)))
    triton.runtime.driver.set_active(FakeDriver())
    triton_helpers.set_driver_to_gpu = lambda: None
    config.use_static_cuda_launcher = False  # it drops the PTX
    triton.knobs.compilation.disable_line_info = True
    CUDABackend.make_cubin = lambda *arguments: b""  # ptxas is slow to start: see `generate`
    found: list[Found] = []

    def captured(graph: GraphLowering) -> Any:
        code = graph.codegen()[0].value
        found.append(Found(code, graph.count_bytes()[0], code.count(".run(")))
        module = types.ModuleType("generated")
        module.call = _not_run  # type: ignore[attr-defined]
        module.__file__ = os.devnull
        return module

    GraphLowering.compile_to_module = captured  # type: ignore[method-assign]
    return found


def assembly(name: str, source: str) -> str:
    """The PTX of a generated kernel, for the first of the sizes among which a GPU would choose."""
    tuner = getattr(PyCodeCache.load(source), name)
    ptx: str = tuner._precompile_config(tuner.configs[0]).kernel.asm["ptx"]
    return ptx


def _not_run(arguments: Any) -> Any:
    raise Generated


def _on_the_cpu(method: Any) -> Any:
    def evaluated(*arguments: Any, **keywords: Any) -> Any:
        with _OnTheCpu():
            return method(*arguments, **keywords)

    return evaluated
