"""Measures the CPU time, memory and GPU load of a run, for its records.

The numbers come from the kernel and the driver: sampling neither synchronises with a GPU nor starts a process.  A
number that cannot be read (no /proc, no NVML, no GPU) is absent.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from altgrad.experiment import gpu_driver as nvml

_STATM = Path("/proc/self/statm")
_MIB = 2**20


class ProcessUsage:
    """Samples this process and the GPU on which it trains; the first sample covers the time since construction."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = _uuid(device)
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def sample(self) -> dict[str, float]:
        """Metrics by name: CPU use since the last sample, all others at this moment."""
        wall, cpu = time.monotonic(), time.process_time()
        found: dict[str, float] = {}
        if wall > self._wall:
            found["cpu_utilisation"] = (cpu - self._cpu) / (wall - self._wall)
        self._wall, self._cpu = wall, cpu
        if _STATM.exists():
            found["resident_memory"] = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB
        load = None if self._gpu is None else nvml.load(self._gpu)
        if load is not None:
            found["gpu_utilisation"], found["gpu_memory"] = load.utilisation, load.memory / _MIB
        return found


def _uuid(device: torch.device) -> str | None:
    """The UUID by which NVML, which numbers GPUs differently from CUDA, finds the GPU; None on a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None
