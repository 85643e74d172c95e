"""What there is to run on, found without torch and ray so that `--dry-run` and errors come at once."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tune.options import SweepError, SweepOptions

if TYPE_CHECKING:
    from tune.plan import Trial

# Small models keep a fraction of a GPU busy; several trials share one.
_GPU_SHARE = 0.25
_LARGE_MODELS = ("medium", "gpt2")


@dataclass(frozen=True)
class Machine:
    """Cores and CUDA GPUs at hand; `gpu_note` says what was looked for and found."""

    cpus: int
    gpus: int
    gpu_note: str


@dataclass(frozen=True)
class Resources:
    """What each worker of a trial holds, how many workers a trial has, and how many trials run at a time."""

    cpus: float
    gpus: float
    concurrent: int
    workers: int = 1

    @property
    def threads(self) -> int:
        """CPU threads of a worker: its cores, at least one."""
        return max(1, int(self.cpus))

    def sentence(self) -> str:
        """What each trial gets, for the plan."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        workers = f"on {self.workers} workers, " if self.workers > 1 else ""
        return f"{self.concurrent} at a time, {workers}each with {self.cpus:g} CPU{gpus}, {threads}"


def this_machine() -> Machine:
    """The local machine: cores this process may use (affinity and cgroup quota), CUDA GPUs it may see."""
    gpus, note = _cuda_gpus()
    return Machine(_usable_cores(), gpus, note)


def share_out(options: SweepOptions, machine: Machine, trials: Sequence[Trial]) -> Resources:
    """Resources per trial and how many fit at a time.  Raises SweepError for a wish that the machine cannot meet."""
    workers, gpus = options.workers_per_trial, options.gpus_per_trial
    if gpus is None:
        large = workers > 1 or any(trial.config.model in _LARGE_MODELS for trial in trials)
        gpus = 0.0 if machine.gpus == 0 else (1.0 if large else _GPU_SHARE)
    if gpus > 1 and gpus != int(gpus):
        raise SweepError(f"--gpus-per-trial {gpus:g}: a share of one GPU (such as 0.25), or a whole number")
    if gpus > machine.gpus:
        raise SweepError(f"--gpus-per-trial {gpus:g}: {machine.gpu_note}; leave it out to train on the CPU")
    cpus = options.cpus_per_trial
    if cpus is None:
        cpus = 1.0 if gpus else float(max(1, machine.cpus // max(1, len(trials) * workers)))
    if cpus > machine.cpus:
        raise SweepError(f"--cpus-per-trial {cpus:g}: there are {machine.cpus} CPU cores")
    fit = int(machine.cpus / cpus)
    if gpus:
        fit = min(fit, int(machine.gpus / gpus) if gpus >= 1 else machine.gpus * int(1 / gpus))
    if workers > 1:
        _check_workers(workers, cpus, gpus, machine, trials)
        fit //= workers
    concurrent = max(1, min(fit, len(trials), options.max_concurrent or fit))
    return Resources(cpus, gpus, concurrent, workers)


def _check_workers(workers: int, cpus: float, gpus: float, machine: Machine, trials: Sequence[Trial]) -> None:
    """Refuse more workers than the machine holds, and batches that do not divide among them."""
    option = f"--workers-per-trial {workers}"
    if workers * cpus > machine.cpus:
        raise SweepError(f"{option}: needs {workers} x {cpus:g} CPU cores, there are {machine.cpus}")
    if workers * gpus > machine.gpus:
        raise SweepError(f"{option}: needs {workers} x {gpus:g} GPU; {machine.gpu_note}")
    if 0 < gpus < 1:
        raise SweepError(f"{option}: workers of one trial cannot share a GPU; --gpus-per-trial must be a whole number")
    for trial in trials:
        if trial.config.batch_size % workers:
            raise SweepError(f"{option}: {trial.run} has batch_size={trial.config.batch_size}, not a multiple of it")


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, math.ceil(int(limit) / int(period)))
    return max(1, cores)


def _cuda_gpus() -> tuple[int, str]:
    """Number of CUDA GPUs that torch would see, and a few words on how that is known."""
    found = _nvml_count()
    if found == 0:
        return 0, "no CUDA GPU found"
    counted = f"{found} CUDA GPU{'s' * (found != 1)} found"
    if metadata.version("torch").endswith("+cpu"):
        return 0, f"{counted}, but this torch is built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found, counted
    usable = min(found, len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")]))
    return usable, f"{counted}, {usable} of them in CUDA_VISIBLE_DEVICES"


def _nvml_count() -> int:
    """GPUs that the NVIDIA driver's management library counts; 0 where there is no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if nvml.nvmlInit_v2() != 0:
        return 0
    count = ctypes.c_uint(0)
    known = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    nvml.nvmlShutdown()
    return count.value if known else 0
