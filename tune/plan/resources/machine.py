"""Finds CPUs and GPUs and divides them among trials, without importing torch or ray, so that errors come early."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from altgrad.config.train_config import BUILT_IN_TASK
from altgrad.experiment import gpu_driver as nvml
from tune.plan.options import SweepError, SweepOptions
from tune.plan.resources.gpu_memory import GIB, check_share, fitting_share, needs, share_of
from tune.plan.trial_kinds import runs_alike

if TYPE_CHECKING:
    from tune.plan.trial import Trial

# A trial with a small model uses a fraction of a GPU: so many share one, if there are more trials than GPUs.
_PER_GPU = 4
_LARGE_MODELS = ("medium", "gpt2")


@dataclass(frozen=True)
class Machine:
    """CPU cores and CUDA GPUs that a sweep can use; `gpu_note`: a few words on the GPUs found."""

    cpus: int
    gpus: int
    gpu_note: str
    gpu_bytes: int | None = None  # memory of the smallest of these GPUs; None if unknown


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of each worker of a trial, number of workers per trial, and of trials at a time (`concurrent`)."""

    cpus: float
    gpus: float
    concurrent: int
    workers: int = 1

    @property
    def threads(self) -> int:
        """CPU threads of a worker: its cores, at least one."""
        return max(1, int(self.cpus))

    def gpus_of(self, slot: int) -> range:
        """Numbers of the GPUs of the trial in a slot, as Ray hands them out: it fills one before it takes the next."""
        if not self.gpus:
            return range(0)
        if self.gpus < 1:
            gpu = slot // int(1 / self.gpus)
            return range(gpu, gpu + 1)
        each = int(self.gpus) * self.workers
        return range(slot * each, (slot + 1) * each)

    def sentence(self) -> str:
        """One sentence about the resources of each trial, for the plan."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        workers = f"on {self.workers} workers, " if self.workers > 1 else ""
        return f"{self.concurrent} at a time, {workers}each with {self.cpus:g} CPU{gpus}, {threads}"

    def memory_sentence(self, machine: Machine, trials: Sequence[Trial]) -> str | None:
        """One sentence about the GPU memory of the largest trial, for the plan; None if no trial trains on a GPU."""
        sizes = needs(_parts(trials, self.workers)) if self.gpus else []
        if not sizes:
            return None
        holder = "each worker of the largest trial" if self.workers > 1 else "the largest trial"
        sentence = f"GPU memory: about {sizes[0][0] / GIB:.3g} GiB for {holder} ({sizes[0][1]})"
        if machine.gpu_bytes is None:
            return f"{sentence}; the memory of a GPU is not known, so it was not checked"
        return f"{sentence}, a GPU has {machine.gpu_bytes / GIB:.3g} GiB"


@dataclass(frozen=True)
class Shares:
    """Resources of each worker of a trial, fixed for the life of a sweep, also when it is resumed elsewhere.

    They affect results in the last digits: the threads decide in which order float32 numbers are added, and
    `runs_alike`, by run, whether `compile: auto` compiles.  A resumed sweep has fewer trials left, and would choose
    other values.
    """

    cpus: float
    gpus: float
    workers: int
    runs_alike: Mapping[str, int]

    @classmethod
    def of(cls, resources: Resources, trials: Sequence[Trial]) -> Shares:
        """The shares of a sweep that begins with these trials."""
        alike = runs_alike(trials, resources.concurrent) if resources.workers == 1 else [1] * len(trials)
        names = (trial.run for trial in trials)
        return cls(resources.cpus, resources.gpus, resources.workers, dict(zip(names, alike, strict=True)))

    def kept(self, options: SweepOptions, machine: Machine) -> SweepOptions:
        """The options, with these shares for those not given.  Raises SweepError if this machine has too little."""
        advice = "resume on a machine that has them, or give {}, which changes numbers in their last digits"
        if options.cpus_per_trial is None and self.cpus > machine.cpus:
            have = f"its trials hold {self.cpus:g} CPU cores each, this machine has {machine.cpus}"
            raise SweepError(f"--resume: {have}; {advice.format(f'--cpus-per-trial {machine.cpus}')}")
        if options.gpus_per_trial is None and self.gpus > machine.gpus:
            have = f"its trials hold {self.gpus:g} GPU each, {machine.gpu_note}"
            raise SweepError(f"--resume: {have}; {advice.format(f'--gpus-per-trial {machine.gpus}')}")
        return replace(
            options,
            cpus_per_trial=self.cpus if options.cpus_per_trial is None else options.cpus_per_trial,
            gpus_per_trial=self.gpus if options.gpus_per_trial is None else options.gpus_per_trial,
            workers_per_trial=self.workers if options.workers_per_trial is None else options.workers_per_trial,
        )

    def note(self, options: SweepOptions) -> str | None:
        """One sentence about the shares that the options change, for the plan; None if they change none."""
        asked = {
            "--cpus-per-trial": (self.cpus, options.cpus_per_trial),
            "--gpus-per-trial": (self.gpus, options.gpus_per_trial),
            "--workers-per-trial": (self.workers, options.workers_per_trial),
        }
        changed = [f"{name} {new:g} for {old:g}" for name, (old, new) in asked.items() if new not in (None, old)]
        if not changed:
            return None
        return f"{', '.join(changed)}: from here on the numbers of resumed runs differ in their last digits"


def this_machine() -> Machine:
    """The local machine: the cores (affinity, cgroup quota) and CUDA GPUs that this process may use."""
    found = nvml.gpus()
    gpus, note = _cuda_gpus(len(found))
    sizes = [gpu.memory for gpu in found if gpu.memory is not None]
    return Machine(_usable_cores(), gpus, note, min(sizes) if gpus and len(sizes) == len(found) else None)


def share_out(options: SweepOptions, machine: Machine, trials: Sequence[Trial]) -> Resources:
    """Resources per trial, and the number of trials at a time.

    Example: 8 cores, no GPU, 16 trials: 1 core each, 8 at a time; with 3 trials: 2 cores each, 3 at a time.  Small
    trials share a GPU only as far as there are too few: 8 GPUs and 12 trials give 0.5 GPU each, 40 trials 0.25.
    Raises SweepError for options that the machine cannot fulfil.
    """
    workers, gpus = options.workers_per_trial or 1, options.gpus_per_trial
    parts = _parts(trials, workers)
    if gpus is None:
        large = workers > 1 or any(_may_be_large(trial) for trial in trials)
        gpus = 0.0 if machine.gpus == 0 else (1.0 if large else _share(options, machine, len(trials)))
        if gpus and machine.gpu_bytes is not None:
            gpus = fitting_share(parts, machine.gpu_bytes, gpus)
    elif 0 < gpus <= 1 and machine.gpus and machine.gpu_bytes is not None:
        check_share(gpus, parts, machine.gpu_bytes)
    if gpus > 1 and gpus != int(gpus):
        raise SweepError(f"--gpus-per-trial {gpus:g}: a share of one GPU (such as 0.25), or a whole number")
    if gpus > machine.gpus:
        raise SweepError(f"--gpus-per-trial {gpus:g}: {machine.gpu_note}; leave it out to train on the CPU")
    graphs = [trial.run for trial in trials if trial.config.cuda_graphs]
    if graphs and not gpus:
        raise SweepError(f"cuda_graphs=true: {graphs[0]} trains on the CPU ({machine.gpu_note}); leave it out")
    cpus = options.cpus_per_trial
    if cpus is None:
        cpus = 1.0 if gpus else float(max(1, machine.cpus // max(1, len(trials) * workers)))
    if cpus > machine.cpus:
        raise SweepError(f"--cpus-per-trial {cpus:g}: there are {machine.cpus} CPU cores")
    fit = int(machine.cpus / cpus)
    if gpus:
        fit = min(fit, int(machine.gpus / gpus) if gpus >= 1 else machine.gpus * int(1 / gpus))
    if workers > 1:
        _check_workers(workers, cpus, gpus, machine)
        fit //= workers
    concurrent = max(1, min(fit, len(trials), options.max_concurrent or fit))
    return Resources(cpus, gpus, concurrent, workers)


def _share(options: SweepOptions, machine: Machine, trials: int) -> float:
    """The share of a GPU with which as many small trials run at a time as may, on as many GPUs as there are."""
    cores = int(machine.cpus / (options.cpus_per_trial or 1))
    at_once = max(1, min(trials, cores, options.max_concurrent or trials))
    return share_of(min(_PER_GPU, math.ceil(at_once / machine.gpus)))


def _may_be_large(trial: Trial) -> bool:
    """Whether a trial may need a whole GPU: a large preset of the GPT, or another task, whose size is not known."""
    return trial.config.task != BUILT_IN_TASK or trial.config.model in _LARGE_MODELS


def _parts(trials: Sequence[Trial], workers: int) -> Sequence[Trial]:
    """The trials with the batch of one worker.  Raises SweepError if a batch does not divide among the workers."""
    for trial in trials:
        if trial.config.batch_size % workers:
            option = f"--workers-per-trial {workers}"
            raise SweepError(f"{option}: {trial.run} has batch_size={trial.config.batch_size}, not a multiple of it")
    if workers == 1:
        return trials
    shares = [trial.config.batch_size // workers for trial in trials]
    return [replace(t, config=t.config.altered(batch_size=rows)) for t, rows in zip(trials, shares, strict=True)]


def _check_workers(workers: int, cpus: float, gpus: float, machine: Machine) -> None:
    """Raise SweepError if the machine cannot hold the workers of one trial."""
    option = f"--workers-per-trial {workers}"
    if workers * cpus > machine.cpus:
        raise SweepError(f"{option}: needs {workers} x {cpus:g} CPU cores, there are {machine.cpus}")
    if workers * gpus > machine.gpus:
        raise SweepError(f"{option}: needs {workers} x {gpus:g} GPU; {machine.gpu_note}")
    if 0 < gpus < 1:
        raise SweepError(f"{option}: workers of one trial cannot share a GPU; --gpus-per-trial must be a whole number")


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, math.ceil(int(limit) / int(period)))
    return max(1, cores)


def _cuda_gpus(found: int) -> tuple[int, str]:
    """(number of the driver's GPUs that torch can use, a few words on how it was determined)."""
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
