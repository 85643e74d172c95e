"""Measures the time of trials on this machine (`--probe`), and predicts that of a plan from stored measurements.

A probe trains a few real steps of each kind of trial.  Concurrent trials share memory bandwidth and caches, so that a
probe runs as many processes of a kind at once as the sweep will run trials.

Example: 500 steps of 0.1 s, a diagnosis every 50 steps (0.4 s), a validation every 100 (0.5 s) and a checkpoint every
100 (0.2 s) take 490 x 0.1 + 10 x 0.4 + 5 x 0.5 + 5 x 0.2 = 56.5 s after the set-up.

A probe takes a minute or two per kind, which is too long for every plan.  It runs only on request, and its result is
kept in the user's cache folder for later plans of the same kinds on the same machine.  No torch is imported here, only
by the processes that measure (`tune/timing/probe_steps.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from altgrad.config.shipped_configs import ROOT
from altgrad.config.train_config import TrainConfig
from altgrad.experiment import gpu_driver as nvml
from tune.plan.options import SweepError
from tune.plan.resources.machine import Resources
from tune.plan.resources.placement import Expected
from tune.plan.trial import Trial
from tune.plan.trial_kinds import runs_alike, timed_kind

_RAY_SECONDS = 6.0  # from the command to the start of its first worker, on an idle machine


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a trial's parts: set-up, a plain step, a step with diagnostics, a validation, a checkpoint.

    `start`: from the start of a process to the end of its first step; `setup`: the same for a further trial in a
    process that is already running.
    """

    start: float
    setup: float
    step: float
    diagnosis: float
    validation: float
    checkpoint: float

    def seconds(self, config: TrainConfig) -> float:
        """Seconds of the steps that a trial itself trains; the last one is always diagnosed, validated and kept."""
        last, begin = config.max_steps, config.begins_after
        diagnosed, validated, kept = (
            -(-last // interval) - begin // interval
            for interval in (config.diagnostic_interval, config.eval_interval, config.checkpoint_interval)
        )
        plain = last - begin - diagnosed
        parts = plain * self.step + diagnosed * self.diagnosis + validated * self.validation + kept * self.checkpoint
        return self.setup + parts


class TimesStore:
    """Measured times by key, in a JSON file in the user's cache folder; an unreadable file counts as empty."""

    def __init__(self, file: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.file = file or Path(cache) / "altgrad" / "step-times.json"

    def read(self) -> dict[str, StepTimes]:
        """The stored times by key; empty if there is no readable file."""
        try:
            return {key: StepTimes(**times) for key, times in json.loads(self.file.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def add(self, key: str, times: StepTimes) -> None:
        """Store one more entry.  Raises OSError if the folder cannot be written."""
        entries = {known: asdict(kept) for known, kept in (self.read() | {key: times}).items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(entries, indent=1))
        fresh.replace(self.file)


def expected(trials: Sequence[Trial], resources: Resources, store: TimesStore) -> Expected | None:
    """Expected seconds of the trials; None if the kind of any of them was never measured on this machine."""
    known, machine = store.read(), _machine()
    times = [known.get(_key(trial.config, resources, machine)) for trial in trials]
    found = [entry for entry in times if entry is not None]
    if not found or len(found) < len(trials):
        return None
    start = _RAY_SECONDS + max(entry.start for entry in found)
    return Expected(start, tuple(entry.seconds(trial.config) for entry, trial in zip(found, trials, strict=True)))


def measure(
    trials: Sequence[Trial],
    resources: Resources,
    gpus: int,
    store: TimesStore,
    say: Callable[[str], None],
    window: float = 2.0,
) -> None:
    """Measure every kind of trial, each part for at least `window` seconds, and store the times.

    Raises SweepError if a kind cannot train or the times cannot be stored.
    """
    machine = _machine()
    kinds: dict[str, tuple[Trial, int]] = {}
    for trial, alike in zip(trials, runs_alike(trials, resources.concurrent), strict=True):
        kinds.setdefault(_key(trial.config, resources, machine), (trial, alike))
    for number, (key, (trial, alike)) in enumerate(kinds.items(), start=1):
        say(f"probe {number} of {len(kinds)}: {trial.run}, {resources.concurrent} at once")
        times = _times_of(trial, resources, _devices(resources, gpus), {"runs_alike": alike, "window": window})
        try:
            store.add(key, times)
        except OSError as error:
            raise SweepError(f"--probe: {store.file} cannot be written ({error}); set XDG_CACHE_HOME") from error


def _times_of(trial: Trial, resources: Resources, devices: Sequence[str], how: dict[str, float]) -> StepTimes:
    """Train the trial's first steps in as many processes at once as the sweep will have; return their mean times."""
    job = {"config": trial.config.model_dump(), "threads": resources.threads, **how}
    with _processes() as start:
        running = [start(devices[0], job)]
        _answer(running[0], trial)  # it compiles first; the others load its graphs from the cache on disk
        running += [start(device, job) for device in devices[1:]]
        for process in running[1:]:
            _answer(process, trial)
        for process in running:
            _tell(process, "go")
        found = [json.loads(_answer(process, trial)) for process in running]
    mean = {name: sum(times[name] for times in found) / len(found) for name in found[0]}
    # The last process found all graphs in the cache, unless it is the only one.
    return StepTimes(**(mean | {"start": found[-1]["start"]}))


def _devices(resources: Resources, gpus: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each process, with the GPUs assigned as by Ray."""
    if not resources.gpus:
        return [""] * resources.concurrent
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(index) for index in range(gpus)] if given is None else given.split(",")[:gpus]
    return [",".join(visible[gpu] for gpu in resources.gpus_of(process)) for process in range(resources.concurrent)]


@contextmanager
def _processes() -> Iterator[Callable[[str, dict[str, object]], subprocess.Popen[str]]]:
    """Context that yields a function to start measuring processes; they are killed on exit."""
    started: list[subprocess.Popen[str]] = []

    def start(device: str, job: dict[str, object]) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tune.timing.probe_steps"],
            env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": device},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        _tell(process, json.dumps(job | {"spawned": time.time()}))
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # the process has ended; `_answer` reads the reason


def _answer(process: subprocess.Popen[str], trial: Trial) -> str:
    """The process's next answer, a line that begins with `= `; lines that libraries print are skipped.

    Raises SweepError, with its last line of output, if the process ends without an answer.
    """
    assert process.stdout is not None
    last = "no output"
    for line in process.stdout:
        if line.startswith("= "):
            return line[2:]
        last = line.strip() or last
    raise SweepError(f"--probe: {trial.run} cannot train ({last}, exit code {process.wait()})")


def _key(config: TrainConfig, resources: Resources, machine: str) -> str:
    """Hash of all that determines the time of a trial's steps: its kind, its resources and the machine."""
    return hashlib.sha256(f"{timed_kind(config)} {resources} {machine}".encode()).hexdigest()[:16]


def _machine() -> str:
    """The properties of this machine that determine speed: processor, GPUs, number of cores, torch version."""
    gpus = ",".join(gpu.name for gpu in nvml.gpus())
    return f"{_processor()} {gpus} {os.cpu_count()} {metadata.version('torch')}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
