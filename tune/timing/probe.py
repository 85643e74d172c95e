"""How long a trial will take on this machine: a few real steps of each kind of trial, measured once and kept.

Trials that run beside each other share memory and caches, so as many processes as the sweep will have at a time train
the same kind at once.  A probe takes a minute or two per kind, much more than a plan may; so it is run only when asked
for (`--probe`), and kept in the user's cache folder for every later plan of the same kinds on the same machine.
No torch here: it is imported by the processes that measure (`tune/timing/probe_steps.py`).
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

from altgrad.config.train_config import TrainConfig
from altgrad.experiment import gpu_driver as nvml
from tune.plan.machine import Resources
from tune.plan.options import SweepError
from tune.plan.placement import Expected
from tune.plan.trial import Trial
from tune.plan.trial_kinds import runs_alike, timed_kind

_ROOT = Path(__file__).resolve().parents[2]
_RAY_SECONDS = 6.0  # from the command to its first worker's start, on a machine that does nothing else


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a trial's parts: its set-up, a plain step, one that is diagnosed, a validation, a checkpoint.

    `start` is that of its process, up to the first step; `setup` that of a further trial in the same process.
    """

    start: float
    setup: float
    step: float
    diagnosis: float
    validation: float
    checkpoint: float

    def seconds(self, config: TrainConfig) -> float:
        """A whole trial; what an interval does is also done at the last step."""
        diagnosed, validated, kept = (
            -(-config.max_steps // interval)
            for interval in (config.diagnostic_interval, config.eval_interval, config.checkpoint_interval)
        )
        plain = config.max_steps - diagnosed
        parts = plain * self.step + diagnosed * self.diagnosis + validated * self.validation + kept * self.checkpoint
        return self.setup + parts


class TimesStore:
    """Measured times by key, in a JSON file of the user's cache folder.  A file that cannot be read holds none."""

    def __init__(self, file: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.file = file or Path(cache) / "altgrad" / "step-times.json"

    def read(self) -> dict[str, StepTimes]:
        try:
            return {key: StepTimes(**times) for key, times in json.loads(self.file.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def add(self, key: str, times: StepTimes) -> None:
        """Keep one more entry.  Raises OSError where the folder cannot be written."""
        entries = {known: asdict(kept) for known, kept in (self.read() | {key: times}).items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(entries, indent=1))
        fresh.replace(self.file)


def expected(trials: Sequence[Trial], resources: Resources, store: TimesStore) -> Expected | None:
    """What the trials will take; None where the kind of any of them was never measured here."""
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
    """Measure every kind of trial, each sort of step for `window` seconds, and store it.

    Raises SweepError where a kind cannot train or nothing can be kept.
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
    """Train the trial's first steps in as many processes as the sweep will have; their mean times."""
    job = {"config": trial.config.model_dump(), "threads": resources.threads, **how}
    with _processes() as start:
        running = [start(devices[0], job)]
        _answer(running[0], trial)  # what it compiled, the others find on disk
        running += [start(device, job) for device in devices[1:]]
        for process in running[1:]:
            _answer(process, trial)
        for process in running:
            _tell(process, "go")
        found = [json.loads(_answer(process, trial)) for process in running]
    mean = {name: sum(times[name] for times in found) / len(found) for name in found[0]}
    return StepTimes(**(mean | {"start": found[-1]["start"]}))  # the last one compiled nothing, unless it was alone


def _devices(resources: Resources, gpus: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each process, as Ray would share them out."""
    if not resources.gpus:
        return [""] * resources.concurrent
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(index) for index in range(gpus)] if given is None else given.split(",")[:gpus]
    if resources.gpus < 1:
        each = int(1 / resources.gpus)
        return [visible[process // each] for process in range(resources.concurrent)]
    each = int(resources.gpus)
    return [",".join(visible[process * each : (process + 1) * each]) for process in range(resources.concurrent)]


@contextmanager
def _processes() -> Iterator[Callable[[str, dict[str, object]], subprocess.Popen[str]]]:
    """Starts processes that measure; none of them outlives the block."""
    started: list[subprocess.Popen[str]] = []

    def start(device: str, job: dict[str, object]) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
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
        pass  # it has ended, and said why


def _answer(process: subprocess.Popen[str], trial: Trial) -> str:
    """The process's next answer, marked by `= `; whatever libraries print in between is not ours."""
    assert process.stdout is not None
    last = "no output"
    for line in process.stdout:
        if line.startswith("= "):
            return line[2:]
        last = line.strip() or last
    raise SweepError(f"--probe: {trial.run} cannot train ({last}, exit code {process.wait()})")


def _key(config: TrainConfig, resources: Resources, machine: str) -> str:
    """What decides how long a trial's steps take: its kind, the machine, and how much of it each trial gets."""
    return hashlib.sha256(f"{timed_kind(config)} {resources} {machine}".encode()).hexdigest()[:16]


def _machine() -> str:
    """This machine as far as speed goes: processor, GPUs and torch."""
    gpus = ",".join(gpu.name for gpu in nvml.gpus())
    return f"{_processor()} {gpus} {os.cpu_count()} {metadata.version('torch')}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
