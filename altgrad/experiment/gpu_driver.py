"""Reads number, memory and load of the GPUs from NVIDIA's management library (NVML).

NVML ships with the driver and answers in microseconds without a CUDA context and without torch, so that planning can
read a GPU's memory, and a training loop its load, without synchronising with the device.  If there is no driver or its
binding (nvidia-ml-py) is not installed, no GPU is reported and nothing is raised.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `memory` in bytes, None if it is unknown or divided into MIG slices."""

    name: str
    memory: int | None


@dataclass(frozen=True)
class Load:
    """Load of a whole GPU by all processes: share of time with a kernel running, and bytes of memory in use."""

    utilisation: float
    memory: int


def gpus() -> list[Gpu]:
    """The GPUs that the driver knows; empty without a driver."""
    nvml = _library()
    if nvml is None:
        return []
    found = []
    with suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):
                found.append(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
    return found


def load(uuid: str) -> Load | None:
    """The present load of the GPU with that UUID (`GPU-...`); None if NVML cannot tell."""
    nvml = _library()
    if nvml is None:
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return Load(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100, nvml.nvmlDeviceGetMemoryInfo(handle).used)
    except nvml.NVMLError:
        return None


def _gpu(nvml: ModuleType, handle: Any) -> Gpu:
    """Name and memory of a GPU; "GPU" and None for what the driver does not report."""
    name, memory = "GPU", None
    with suppress(nvml.NVMLError):
        name = nvml.nvmlDeviceGetName(handle)
    if not _is_cut(nvml, handle):
        with suppress(nvml.NVMLError):
            memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(name, memory)


def _is_cut(nvml: ModuleType, handle: Any) -> bool:
    """Whether the GPU is in MIG mode; False for older GPUs, for which the query is an error."""
    try:
        now, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False
    return bool(now == nvml.NVML_DEVICE_MIG_ENABLE)


@cache
def _library() -> ModuleType | None:
    """NVML, initialised for the life of the process; None without a driver or the binding."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    module: ModuleType = pynvml
    return module
