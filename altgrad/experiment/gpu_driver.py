"""NVIDIA's management library (NVML): what GPUs there are, how full and how busy they are.

It ships with the driver and answers in microseconds without a CUDA context and without torch, so that planning can
ask for a GPU's memory and a training loop for its load without waiting for the device.  Where there is no driver
there are no GPUs: nothing here raises for that, nor where its binding (nvidia-ml-py) is not installed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `memory` in bytes, None where it is cut into MIG slices of sizes of their own."""

    name: str
    memory: int | None


@dataclass(frozen=True)
class Load:
    """What the whole GPU does, whoever does it: share of time with a kernel running, and bytes in use."""

    utilisation: float
    memory: int


def gpus() -> list[Gpu]:
    """The GPUs that the driver knows; none where there is no driver."""
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
    """What the GPU of that UUID (`GPU-...`) does at the moment; None where NVML does not say."""
    nvml = _library()
    if nvml is None:
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return Load(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100, nvml.nvmlDeviceGetMemoryInfo(handle).used)
    except nvml.NVMLError:
        return None


def _gpu(nvml: ModuleType, handle: Any) -> Gpu:
    """Its name and memory, each as far as the driver says."""
    name, memory = "GPU", None
    with suppress(nvml.NVMLError):
        name = nvml.nvmlDeviceGetName(handle)
    if not _is_cut(nvml, handle):
        with suppress(nvml.NVMLError):
            memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(name, memory)


def _is_cut(nvml: ModuleType, handle: Any) -> bool:
    """Whether the GPU is in MIG mode; older GPUs do not know the question."""
    try:
        now, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False
    return bool(now == nvml.NVML_DEVICE_MIG_ENABLE)


@cache
def _library() -> ModuleType | None:
    """NVML, initialised for the life of the process; None where there is no driver or no binding."""
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
