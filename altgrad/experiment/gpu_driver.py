"""NVIDIA's management library (NVML) through ctypes: what GPUs there are, how full and how busy they are.

It ships with the driver and answers in microseconds without a CUDA context and without torch, so that planning can
ask for a GPU's memory and a training loop for its load without waiting for the device.  Where there is no driver
there are no GPUs: nothing here raises for that.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_TEXT_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE, which is also enough for a name
_MIG_ENABLED = 1


class _Memory(ctypes.Structure):  # nvmlMemory_t
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):  # nvmlUtilization_t, in percent
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


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
    library = _library()
    count = ctypes.c_uint(0)
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_TEXT_BYTES)
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            named = library.nvmlDeviceGetName(handle, name, _TEXT_BYTES) == 0
            memory = None if _is_cut(library, handle) else _memory(library, handle)
            found.append(Gpu(name.value.decode() if named else "GPU", None if memory is None else memory.total))
    return found


def load(uuid: str) -> Load | None:
    """What the GPU of that UUID (`GPU-...`) does at the moment; None where NVML does not say."""
    library, handle, busy = _library(), ctypes.c_void_p(), _Utilization()
    if library is None or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None
    memory = _memory(library, handle)
    if memory is None or library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(busy)) != 0:
        return None
    return Load(busy.gpu / 100, memory.used)


def _memory(library: ctypes.CDLL, handle: ctypes.c_void_p) -> _Memory | None:
    memory = _Memory()
    return memory if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0 else None


def _is_cut(library: ctypes.CDLL, handle: ctypes.c_void_p) -> bool:
    """Whether the GPU is in MIG mode; older GPUs do not know the question."""
    mode, pending = ctypes.c_uint(0), ctypes.c_uint(0)
    known = library.nvmlDeviceGetMigMode(handle, ctypes.byref(mode), ctypes.byref(pending)) == 0
    return known and mode.value == _MIG_ENABLED


@cache
def _library() -> ctypes.CDLL | None:
    """NVML, initialised for the life of the process; None where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None
